//! The `.go.buildinfo` blob: toolchain version and main module of a Go binary.
//!
//! Pure. Only the form of Go 1.18 and later (strings in the blob itself) is read; nothing older is supported anyway.

/// What a blob begins with.
pub const MAGIC: &[u8] = b"\xff Go buildinf:";

const STRINGS_AT: usize = 32;
const INLINE_STRINGS: u8 = 2;
const MAX_STRING: usize = 1 << 20;
/// Sentinels of 16 bytes before and behind the module text.
const SENTINEL: usize = 16;

/// What the linker noted about the build.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildInfo {
    /// Toolchain, `go1.23.5`.
    pub version: String,
    /// Path of the main package; empty if not noted.
    pub path: String,
    /// Version of the main module, such as `v2.42.0` or `(devel)`; empty if not noted.
    pub module_version: String,
}

/// Reads the blob at the beginning of `data`; `None` if there is none or not in the form of Go 1.18 and later.
pub fn parse(data: &[u8]) -> Option<BuildInfo> {
    if !data.starts_with(MAGIC) || data.get(15)? & INLINE_STRINGS == 0 {
        return None;
    }
    let mut rest = data.get(STRINGS_AT..)?;
    let version = text(string(&mut rest)?);
    let module = string(&mut rest).unwrap_or_default();
    let module = module
        .get(SENTINEL..module.len().saturating_sub(SENTINEL))
        .unwrap_or_default();
    let module = text(module);
    let mut info = BuildInfo {
        version,
        ..BuildInfo::default()
    };
    for line in module.lines() {
        let mut fields = line.split('\t');
        match fields.next() {
            Some("path") => info.path = fields.next().unwrap_or_default().to_owned(),
            Some("mod") => info.module_version = fields.nth(1).unwrap_or_default().to_owned(),
            _ => {}
        }
    }
    Some(info)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A string with its length as a varint in front.
fn string<'d>(data: &mut &'d [u8]) -> Option<&'d [u8]> {
    let mut len = 0usize;
    for (index, &byte) in data.iter().take(4).enumerate() {
        len |= usize::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            let found = data.get(index + 1..)?.get(..len.min(MAX_STRING))?;
            *data = data.get(index + 1 + len..)?;
            return Some(found);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(version: &str, module: &str) -> Vec<u8> {
        let mut data = MAGIC.to_vec();
        data.extend([8, INLINE_STRINGS]);
        data.resize(STRINGS_AT, 0);
        for part in [version.as_bytes(), module.as_bytes()] {
            let mut len = part.len();
            while len >= 0x80 {
                data.push(len as u8 | 0x80);
                len >>= 7;
            }
            data.push(len as u8);
            data.extend_from_slice(part);
        }
        data
    }

    #[test]
    fn version_and_module() {
        let sentinel = "0123456789abcdef";
        let module = format!(
            "{sentinel}path\texample.org/x/cmd\nmod\texample.org/x\tv1.2.3\th1:=\n{}{sentinel}",
            "dep\ty\n".repeat(40)
        );
        let info = parse(&blob("go1.23.5", &module)).expect("a blob");
        assert_eq!(info.version, "go1.23.5");
        assert_eq!(info.path, "example.org/x/cmd");
        assert_eq!(info.module_version, "v1.2.3");
        let bare = parse(&blob("go1.19.8", "")).expect("a blob without modules");
        assert_eq!((bare.version.as_str(), bare.path.as_str()), ("go1.19.8", ""));
    }

    #[test]
    fn nothing_that_is_cut_short_panics() {
        let full = blob("go1.23.5", &"x".repeat(200));
        for len in 0..full.len() {
            let _ = parse(&full[..len]);
        }
        assert_eq!(parse(b"\xff Go buildinf:\x08\x00"), None);
    }
}
