// Writes the licence texts of what the bundles hold.
import { readdirSync, readFileSync, writeFileSync } from "node:fs";

const BUNDLED = ["uplot", "flame-chart-js", "color", "color-convert", "color-name", "color-string", "simple-swizzle", "is-arrayish", "events"];
const texts = BUNDLED.map((name) => {
  const folder = `node_modules/${name}`;
  const { version, license } = JSON.parse(readFileSync(`${folder}/package.json`, "utf8"));
  const file = readdirSync(folder).find((entry) => /^licen[cs]e/i.test(entry));
  if (!file) throw new Error(`${name} has no licence text`);
  return `${name} ${version} (${license})\n\n${readFileSync(`${folder}/${file}`, "utf8").trim()}\n`;
});
writeFileSync(process.argv[2], texts.join(`\n${"-".repeat(80)}\n\n`));
