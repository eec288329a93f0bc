//! The page that the daemon serves: its files, embedded.
//!
//! Owns the files in `assets` and what a server has to say about them (type, tag); serves nothing itself. Invariant:
//! the page asks for nothing but these files and the API of the same origin, and it puts no string that came from a
//! process into markup. How the parts from elsewhere are made is in `README.md`.

/// A file of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asset {
    /// Value of the header `Content-Type`.
    pub content_type: &'static str,
    /// The file.
    pub bytes: &'static [u8],
    /// Value of the header `ETag`, with its quotes; another one when the file changed.
    pub etag: &'static str,
}

/// The file at a path without its leading slash; `index.html` is the page, `login.html` asks for the token.
pub fn asset(path: &str) -> Option<Asset> {
    FILES.iter().find(|(name, _)| *name == path).map(|(_, asset)| *asset)
}

/// The files listed, each under its path below `assets`.
macro_rules! files {
    ($($path:literal: $kind:ident),* $(,)?) => {
        &[$(($path, {
            const BYTES: &[u8] = include_bytes!(concat!("assets/", $path));
            const TAG: [u8; TAG_LENGTH] = tag(BYTES);
            Asset { content_type: $kind, bytes: BYTES, etag: text(&TAG) }
        })),*]
    };
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const IMAGE: &str = "image/svg+xml";
const TEXT: &str = "text/plain; charset=utf-8";

static FILES: &[(&str, Asset)] = files! {
    "api.js": SCRIPT,
    "app.css": CSS,
    "dom.js": SCRIPT,
    "flame-chart.js": SCRIPT,
    "flame.js": SCRIPT,
    "icon.svg": IMAGE,
    "index.html": HTML,
    "licenses.txt": TEXT,
    "login.css": CSS,
    "login.html": HTML,
    "login.js": SCRIPT,
    "main.js": SCRIPT,
    "panels.js": SCRIPT,
    "process.js": SCRIPT,
    "processes.js": SCRIPT,
    "spark.js": SCRIPT,
    "stacks.js": SCRIPT,
    "status.js": SCRIPT,
    "text.js": SCRIPT,
    "theme.js": SCRIPT,
    "timeline.js": SCRIPT,
    "tree.js": SCRIPT,
    "uplot.css": CSS,
    "uplot.js": SCRIPT,
};

/// Two quotes and 16 hexadecimal digits.
const TAG_LENGTH: usize = 18;

/// FNV-1a of the file, in quotes. It tells versions of one file apart and is no protection against anyone.
const fn tag(bytes: &[u8]) -> [u8; TAG_LENGTH] {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut at = 0;
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0100_0000_01b3);
        at += 1;
    }
    let mut text = [b'"'; TAG_LENGTH];
    let mut digit = 0;
    while digit < 16 {
        text[digit + 1] = b"0123456789abcdef"[(hash >> (60 - digit * 4)) as usize & 15];
        digit += 1;
    }
    text
}

/// The tag as text.
const fn text(tag: &[u8; TAG_LENGTH]) -> &str {
    match std::str::from_utf8(tag) {
        Ok(text) => text,
        Err(_) => panic!("a tag is ASCII"),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may end at once")]

    use super::*;

    /// Files that others wrote.
    const FOREIGN: [&str; 2] = ["flame-chart.js", "uplot.js"];

    fn own(ending: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
        FILES
            .iter()
            .filter(move |(name, _)| name.ends_with(ending) && !FOREIGN.contains(name))
            .map(|(name, asset)| (*name, std::str::from_utf8(asset.bytes).unwrap()))
    }

    /// What stands in quotes behind `before`.
    fn quoted<'a>(text: &'a str, before: &'a str) -> impl Iterator<Item = &'a str> {
        text.split(before).skip(1).map(|rest| rest.split('"').next().unwrap())
    }

    #[test]
    fn every_file_of_the_folder_is_served() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/daemon/ui/assets");
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let served: Vec<&str> = FILES.iter().map(|(name, _)| *name).collect();
        assert_eq!(served, names);
    }

    #[test]
    fn every_file_that_is_asked_for_exists() {
        let mut seen = 0;
        for (_, text) in own(".html") {
            for path in quoted(text, "href=\"/").chain(quoted(text, "src=\"/")) {
                assert!(asset(path).is_some(), "{path}");
                seen += 1;
            }
        }
        for (_, text) in own(".js") {
            for path in quoted(text, "from \"./") {
                assert!(asset(path).is_some(), "{path}");
                seen += 1;
            }
        }
        assert!(seen > 20);
    }

    #[test]
    fn no_own_module_writes_markup_or_code() {
        let forbidden = [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "createContextualFragment",
            "DOMParser",
            "srcdoc",
            "eval(",
            "new Function",
            "setTimeout(\"",
        ];
        for (name, text) in own(".js") {
            for word in forbidden {
                assert!(!text.contains(word), "{name} has {word}");
            }
        }
    }

    #[test]
    fn the_policy_allows_all_that_the_page_needs() {
        for (name, text) in own(".html") {
            assert!(!text.contains("style="), "{name} has a style of its own");
            assert!(!text.contains("<style"), "{name} has a style of its own");
            for script in text.split("<script").skip(1) {
                assert!(
                    script.split('>').next().unwrap().contains("src="),
                    "{name} has a script of its own"
                );
            }
        }
        for (name, text) in own("").filter(|(name, _)| *name != "licenses.txt") {
            let outside = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!outside.contains("://"), "{name} names another place");
        }
    }

    #[test]
    fn tags_differ_and_are_quoted() {
        let mut tags: Vec<&str> = FILES.iter().map(|(_, asset)| asset.etag).collect();
        assert!(
            tags.iter()
                .all(|tag| tag.len() == 18 && tag.starts_with('"') && tag.ends_with('"'))
        );
        tags.sort_unstable();
        tags.dedup();
        assert_eq!(tags.len(), FILES.len());
        assert_eq!(tag(b""), *b"\"cbf29ce484222325\"");
    }

    #[test]
    fn paths_are_names_only() {
        for path in ["", "/", "/index.html", "../mod.rs", "assets/index.html", "index.html/"] {
            assert_eq!(asset(path), None, "{path}");
        }
    }
}
