//! Flame graphs, drawn by inferno from folded stacks.
//!
//! Invariant: equal profiles give equal pictures (colours follow names, not chance).

use std::io::{self, Write};

use inferno::flamegraph::color::{BasicPalette, Palette};
use inferno::flamegraph::{self, Options};

use super::folded;
use crate::report::Profile;

/// Draws the stacks by one sample type.
///
/// # Panics
/// Where the profile has no sample type at this position.
pub fn write(profile: &Profile, sample_type: usize, mut output: impl Write) -> io::Result<()> {
    let lines = folded::lines(profile, sample_type);
    if lines.is_empty() {
        // inferno takes no stacks for an error, but a program that holds no memory is good news.
        output.write_all(EMPTY.as_bytes())?;
        return output.flush();
    }
    let value_type = &profile.sample_types[sample_type];
    let mut options = Options::default();
    options.colors = Palette::Basic(BasicPalette::Mem);
    options.deterministic = true;
    options.count_name = value_type.unit.to_string();
    options.title = match profile.metadata.comm.as_str() {
        "" => value_type.kind.to_string(),
        comm => format!("{} of {comm}", value_type.kind),
    };
    options.notes = profile.metadata.losses.to_string();
    flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), &mut output)?;
    output.flush()
}

const EMPTY: &str = r#"<?xml version="1.0" standalone="no"?>
<svg version="1.1" width="600" height="60" xmlns="http://www.w3.org/2000/svg">
<text x="20" y="35" font-family="monospace" font-size="14">No stack holds memory of this kind.</text>
</svg>
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{FrameLine, ProfileBuilder};

    fn drawn(profile: &Profile) -> String {
        let mut svg = Vec::new();
        write(profile, 3, &mut svg).expect("draws");
        String::from_utf8(svg).expect("text")
    }

    #[test]
    fn frames_show_with_their_bytes() {
        let mut builder = ProfileBuilder::heap();
        let hostile = FrameLine {
            function: "<script>alert(1)</script>",
            ..FrameLine::default()
        };
        let leak = builder.location(
            None,
            1,
            &[FrameLine {
                function: "leak_here",
                ..FrameLine::default()
            }],
        );
        let root = builder.location(None, 2, &[hostile]);
        builder.sample(vec![leak, root], &[1, 1, 1, 4096], Vec::new(), Vec::new());
        let profile = builder.finish();
        let svg = drawn(&profile);
        assert!(svg.contains("leak_here (4,096 bytes, 100.00%)"), "{svg}");
        assert!(!svg.contains("<script>alert"), "names are escaped");
        assert_eq!(svg, drawn(&profile));
    }

    #[test]
    fn nothing_held_is_a_picture_too() {
        assert!(drawn(&ProfileBuilder::heap().finish()).contains("No stack holds memory"));
    }
}
