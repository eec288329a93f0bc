//! Whether the dependencies are as `deny.toml` wants them: licences, banned crates, duplicates, sources.
//!
//! cargo-deny does the same and knows advisories besides, but compiling it takes longer than all other checks together,
//! and its database of advisories has to be fetched. So what can be seen from `cargo metadata` alone, offline and in a
//! second, is checked here on every machine, and cargo-deny runs where it is installed. Invariant: both read one file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::{command, workspace};

/// What is checked is built for.
const TARGET: &str = "x86_64-unknown-linux-gnu";

#[derive(Deserialize)]
struct Rules {
    licenses: Licenses,
    bans: Bans,
    sources: Sources,
}

#[derive(Deserialize)]
struct Licenses {
    allow: BTreeSet<String>,
    exceptions: Vec<Exception>,
}

#[derive(Deserialize)]
struct Exception {
    #[serde(rename = "crate")]
    name: String,
    allow: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Named>,
    skip: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    #[serde(rename = "crate")]
    name: String,
    #[serde(default)]
    reason: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    allow_registry: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

/// Checks the workspace.
pub fn check() -> Result<()> {
    let path = workspace::root().join("deny.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("failed to read `{}`", path.display()))?;
    let rules: Rules = toml::from_str(&text).with_context(|| format!("failed to parse `{}`", path.display()))?;
    let mut metadata = command::cargo();
    metadata.args([
        "metadata",
        "--format-version",
        "1",
        "--locked",
        "--filter-platform",
        TARGET,
    ]);
    let shown = command::shown(&metadata);
    let output = command::answer(&mut metadata).with_context(|| format!("`{shown}` failed"))?;
    let metadata: Metadata =
        serde_json::from_str(&output).with_context(|| format!("failed to parse what `{shown}` says"))?;
    let violations = violations(&rules, &metadata);
    if !violations.is_empty() {
        bail!(
            "dependencies are not as deny.toml wants them:\n  {}",
            violations.join("\n  ")
        );
    }
    eprintln!("check: licences, bans, duplicates and sources of dependencies hold");
    with_tool()
}

/// Runs cargo-deny where it is, and says what could not be checked.
fn with_tool() -> Result<()> {
    if command::answer(command::cargo().args(["deny", "--version"])).is_none() {
        eprintln!("check: advisories are not checked: cargo-deny is not installed");
        return Ok(());
    }
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let has_advisories = home.is_some_and(|home| home.join("advisory-dbs").exists());
    let mut deny = command::cargo();
    deny.args(["deny", "--offline", "check", "licenses", "bans", "sources"]);
    if has_advisories {
        deny.arg("advisories");
    } else {
        eprintln!("check: advisories are not checked: their database is not here (cargo deny fetch)");
    }
    command::run(&mut deny)
}

fn violations(rules: &Rules, metadata: &Metadata) -> Vec<String> {
    let mut found = Vec::new();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in &metadata.packages {
        let name = format!("{} {}", package.name, package.version);
        // What has no source is in the workspace.
        let Some(source) = &package.source else { continue };
        versions.entry(&package.name).or_default().insert(&package.version);
        if let Some(banned) = rules.bans.deny.iter().find(|banned| banned.name == package.name) {
            found.push(format!("{name} is banned: {}", banned.reason));
        }
        let registry = source.strip_prefix("registry+").unwrap_or(source);
        if !rules.sources.allow_registry.contains(registry) {
            found.push(format!("{name} is from {source}"));
        }
        let mut exceptions = rules
            .licenses
            .exceptions
            .iter()
            .filter(|other| other.name == package.name);
        let excepted = exceptions.next();
        let allowed = |license: &str| {
            rules.licenses.allow.contains(license) || excepted.is_some_and(|excepted| excepted.allow.contains(license))
        };
        match &package.license {
            Some(expression) if is_allowed(expression, &allowed) => {}
            Some(expression) => found.push(format!("{name} has the licence {expression}")),
            None => found.push(format!("{name} states no licence")),
        }
    }
    for (name, versions) in versions.iter().filter(|(_, versions)| versions.len() > 1) {
        if !rules.bans.skip.iter().any(|skipped| skipped.name == *name) {
            let versions: Vec<&str> = versions.iter().copied().collect();
            found.push(format!("{name} is there in several versions: {}", versions.join(", ")));
        }
    }
    found
}

/// Whether an SPDX expression can be met with the licences that are allowed. `A/B` is the old form of `A OR B`.
fn is_allowed(expression: &str, allowed: &dyn Fn(&str) -> bool) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    let met = either(&mut words, allowed);
    met && words.peek().is_none()
}

type Words<'w> = std::iter::Peekable<std::str::SplitWhitespace<'w>>;

fn either(words: &mut Words<'_>, allowed: &dyn Fn(&str) -> bool) -> bool {
    let mut met = both(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        met |= both(words, allowed);
    }
    met
}

fn both(words: &mut Words<'_>, allowed: &dyn Fn(&str) -> bool) -> bool {
    let mut met = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        met &= one(words, allowed);
    }
    met
}

fn one(words: &mut Words<'_>, allowed: &dyn Fn(&str) -> bool) -> bool {
    match words.next() {
        Some("(") => either(words, allowed) & words.next_if_eq(&")").is_some(),
        Some(license) => match words.next_if_eq(&"WITH").and_then(|_| words.next()) {
            Some(exception) => allowed(&format!("{license} WITH {exception}")),
            None => allowed(license),
        },
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions() {
        let allowed = |license: &str| matches!(license, "MIT" | "ISC" | "Apache-2.0 WITH LLVM-exception");
        for (expression, met) in [
            ("MIT", true),
            ("GPL-3.0", false),
            ("GPL-3.0 OR MIT", true),
            ("GPL-3.0/MIT", true),
            ("MIT AND GPL-3.0", false),
            ("MIT AND ISC", true),
            ("(MIT OR GPL-3.0) AND ISC", true),
            ("MIT AND (GPL-3.0 OR GPL-2.0)", false),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("Apache-2.0", false),
            ("MIT MIT", false),
            ("(MIT", false),
            ("", false),
        ] {
            assert_eq!(is_allowed(expression, &allowed), met, "{expression}");
        }
    }

    #[test]
    fn each_kind_of_violation_is_told() {
        let rules: Rules = toml::from_str(
            "[licenses]\nallow = ['MIT']\nexceptions = [{ crate = 'odd', allow = ['CDDL-1.0'] }]\n\
             [bans]\ndeny = [{ crate = 'bad', reason = 'old' }]\nskip = [{ crate = 'two' }]\n\
             [sources]\nallow-registry = ['here']\n",
        )
        .expect("parses");
        let package = |name: &str, version: &str, license: &str, source: Option<&str>| Package {
            name: name.to_owned(),
            version: version.to_owned(),
            license: Some(license.to_owned()).filter(|license| !license.is_empty()),
            source: source.map(str::to_owned),
        };
        let here = Some("registry+here");
        let packages = vec![
            package("own", "1", "GPL-3.0", None),
            package("good", "1", "MIT", here),
            package("odd", "1", "CDDL-1.0", here),
            package("two", "1", "MIT", here),
            package("two", "2", "MIT", here),
            package("bad", "1", "MIT", here),
            package("far", "1", "MIT", Some("git+there")),
            package("dear", "1", "CDDL-1.0", here),
            package("mute", "1", "", here),
            package("many", "1", "MIT", here),
            package("many", "2", "MIT", here),
        ];
        assert_eq!(
            violations(&rules, &Metadata { packages }),
            [
                "bad 1 is banned: old",
                "far 1 is from git+there",
                "dear 1 has the licence CDDL-1.0",
                "mute 1 states no licence",
                "many is there in several versions: 1, 2",
            ]
        );
    }
}
