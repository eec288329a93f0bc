//! How far stacks can be followed: the unwind table of each executable mapping, or why there is none.

use leaktrace_common::config::MAX_MAPPINGS;

use super::report::{Block, Row, Section};
use crate::{
    session::survey::Survey,
    unwind::{CompileError, TableStats},
};

/// An executable mapping and what is known of its code.
pub struct CodeState {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// The file or, in brackets, what the kernel calls it; empty for none.
    pub name: String,
    /// Its table.
    pub table: Table,
}

/// The unwind table of a mapping.
pub enum Table {
    /// There is one.
    Compiled {
        /// Rows.
        rows: usize,
        /// What it was made from.
        stats: TableStats,
    },
    /// The file has no call-frame information.
    None,
    /// The file cannot be used: why.
    Unusable(String),
    /// Code without a file.
    NoFile,
}

/// The state of each executable mapping, by address.
pub fn mappings(survey: &Survey) -> Vec<CodeState> {
    let executable = survey.mappings.iter().filter(|mapping| mapping.execute);
    executable
        .map(|mapping| CodeState {
            start: mapping.start.0,
            length: mapping.len(),
            name: mapping.path.to_string_lossy().into_owned(),
            table: match mapping.file {
                None => Table::NoFile,
                Some(id) => match survey.files.iter().find(|file| file.id == id) {
                    None => Table::Unusable("the file cannot be opened".to_owned()),
                    Some(file) => match &file.table {
                        None => Table::Unusable("no usable ELF file".to_owned()),
                        Some(Ok(table)) => Table::Compiled {
                            rows: table.rows.len(),
                            stats: table.stats.clone(),
                        },
                        Some(Err(error)) if matches!(**error, CompileError::NoFrames) => Table::None,
                        Some(Err(error)) => Table::Unusable(error.to_string()),
                    },
                },
            },
        })
        .collect()
}

/// The section on unwind tables.
pub fn section(mappings: &[CodeState]) -> Section {
    let mut rows = vec![Row::new(["address", "size", "rows", "covered", "unknown", "file"])];
    rows.extend(mappings.iter().map(row));
    let mut blocks = vec![Block {
        heading: None,
        numeric: &[1, 2, 3, 4],
        rows,
    }];
    if mappings.len() > MAX_MAPPINGS as usize {
        let row = Row::new([&format!(
            "{} executable mappings, {MAX_MAPPINGS} are followed",
            mappings.len()
        )]);
        blocks.push(Block {
            rows: vec![row.note("stacks end in the code of the others").limited()],
            ..Block::default()
        });
    }
    Section {
        title: "Unwind tables",
        blocks,
    }
}

fn row(mapping: &CodeState) -> Row {
    let name = if mapping.name.is_empty() {
        "(no file)"
    } else {
        &mapping.name
    };
    let line = |rows: &str, covered: &str, unknown: &str| {
        let size = format!("{}K", mapping.length.div_ceil(1024));
        Row::new([&format!("{:x}", mapping.start), &size, rows, covered, unknown, name])
    };
    match &mapping.table {
        Table::Compiled { rows, stats } => line(
            &rows.to_string(),
            &share(stats.covered_bytes as f64, stats.text_bytes as f64),
            &share(stats.unknown_share(), 1.0),
        ),
        Table::None => line("none", "-", "-")
            .note("no call-frame information in the file: stacks end here")
            .limited()
            .remedy("build it with -fasynchronous-unwind-tables, and do not strip .eh_frame"),
        Table::Unusable(reason) => line("none", "-", "-")
            .note(format!("{reason}: stacks end here"))
            .limited()
            .remedy("put a sound file in its place and restart the target"),
        Table::NoFile => line("none", "-", "-").note("no file: followed by frame pointers, if its code keeps them"),
    }
}

/// A share in percent; `-` of nothing. Only what is whole shows as 100 %, only what is nothing as 0 %.
fn share(part: f64, whole: f64) -> String {
    if whole <= 0.0 {
        return "-".to_owned();
    }
    let percent = part / whole * 100.0;
    if percent > 0.0 && percent < 0.1 {
        "<0.1%".to_owned()
    } else if percent > 99.9 && percent < 100.0 {
        ">99.9%".to_owned()
    } else {
        format!("{percent:.1}%")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::report::Report;

    fn state(start: u64, name: &str, table: Table) -> CodeState {
        CodeState {
            start,
            length: 0x15_5000,
            name: name.to_owned(),
            table,
        }
    }

    fn compiled(covered: u64, unknown: u64) -> Table {
        let mut stats = TableStats {
            text_bytes: 100_000,
            covered_bytes: covered,
            ..TableStats::default()
        };
        stats.unknown_bytes[1] = unknown;
        Table::Compiled { rows: 12_345, stats }
    }

    #[test]
    fn each_state_of_a_mapping() {
        let mappings = [
            state(0x5555_0000_0000, "/usr/bin/redis-server", compiled(99_950, 10)),
            state(0x7f00_0000_0000, "/lib/libc.so.6", compiled(100_000, 0)),
            state(0x7f10_0000_0000, "/srv/go\u{1b}[2J", Table::None),
            state(
                0x7f20_0000_0000,
                "/srv/bad",
                Table::Unusable("no usable ELF file".to_owned()),
            ),
            state(0x7f30_0000_0000, "", Table::NoFile),
            state(0x7fff_0000_0000, "[vdso]", Table::NoFile),
        ];
        let sections = vec![section(&mappings)];
        insta::assert_snapshot!(Report { sections }.render(false), @r#"
        Unwind tables
            address        size   rows  covered  unknown  file
            555500000000  1364K  12345   >99.9%    <0.1%  /usr/bin/redis-server
            7f0000000000  1364K  12345   100.0%     0.0%  /lib/libc.so.6
        !   7f1000000000  1364K   none        -        -  /srv/go\u{1b}[2J
                no call-frame information in the file: stacks end here
                remedy: build it with -fasynchronous-unwind-tables, and do not strip .eh_frame
        !   7f2000000000  1364K   none        -        -  /srv/bad
                no usable ELF file: stacks end here
                remedy: put a sound file in its place and restart the target
            7f3000000000  1364K   none        -        -  (no file)
                no file: followed by frame pointers, if its code keeps them
            7fff00000000  1364K   none        -        -  [vdso]
                no file: followed by frame pointers, if its code keeps them

        recording would work
        "#);
    }

    #[test]
    fn more_mappings_than_are_followed() {
        let count = MAX_MAPPINGS as usize + 1;
        let mappings: Vec<CodeState> = (0..count).map(|_| state(0, "", Table::NoFile)).collect();
        let report = Report {
            sections: vec![section(&mappings)],
        };
        assert!(
            report
                .render(false)
                .contains("4097 executable mappings, 4096 are followed")
        );
        assert!(report.obstacles().is_empty());
    }

    #[test]
    fn shares_do_not_round_to_the_ends() {
        assert_eq!(share(0.0, 1.0), "0.0%");
        assert_eq!(share(1.0, 10_000.0), "<0.1%");
        assert_eq!(share(99_999.0, 100_000.0), ">99.9%");
        assert_eq!(share(1.0, 1.0), "100.0%");
        assert_eq!(share(1.0, 0.0), "-");
    }
}
