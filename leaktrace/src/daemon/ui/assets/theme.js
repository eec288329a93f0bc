// Dark or light: what the system says, unless the reader chose. Loaded first and alone, so that nothing flashes.
(() => {
  const KEY = "leaktrace-theme";
  let chosen = null;
  try {
    chosen = localStorage.getItem(KEY);
  } catch {
    // Storage may be forbidden; the system's choice holds.
  }
  const system = matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    const theme = chosen === "dark" || chosen === "light" ? chosen : system.matches ? "dark" : "light";
    if (document.documentElement.dataset.theme === theme) return;
    document.documentElement.dataset.theme = theme;
    document.dispatchEvent(new Event("themechange"));
  };
  apply();
  system.addEventListener("change", apply);
  globalThis.leaktraceTheme = {
    get current() {
      return document.documentElement.dataset.theme;
    },
    toggle() {
      chosen = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
      try {
        localStorage.setItem(KEY, chosen);
      } catch {
        // It holds until the page is left.
      }
      apply();
    },
  };
})();
