//! The doctor's report as plain data, and its text.
//!
//! It does not know what is reported. Invariant: every text passes [`printable`] on its way out, because names of files,
//! functions and processes are the target's to choose.

use crate::report::name::printable;

/// What a finding means for a recording.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// As it should be.
    #[default]
    Fine,
    /// Recording would work, and see or tell less.
    Limited,
    /// Recording would not work: why, for the verdict.
    Lacking(String),
}

/// One line of cells, with what belongs to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// What it means.
    pub state: State,
    /// Cells, aligned within a block.
    pub cells: Vec<String>,
    /// Further lines.
    pub notes: Vec<String>,
    /// What can be done about it.
    pub remedy: Option<String>,
}

impl Row {
    /// A row of cells that is fine.
    pub fn new<const N: usize>(cells: [&str; N]) -> Self {
        Self {
            cells: cells.map(str::to_owned).to_vec(),
            ..Self::default()
        }
    }

    /// With a line below.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// A row that limits a recording, and nothing can be done about it here.
    pub fn limited(mut self) -> Self {
        self.state = State::Limited;
        self
    }

    /// With what can be done.
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// A row that prevents a recording: why, and what to do.
    pub fn lacking(mut self, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        self.state = State::Lacking(reason.into());
        self.remedy = Some(remedy.into());
        self
    }
}

/// Rows whose cells are aligned with one another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// A line above.
    pub heading: Option<String>,
    /// Columns to align on the right, by index.
    pub numeric: &'static [usize],
    /// The rows.
    pub rows: Vec<Row>,
}

/// A titled part of the report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Section {
    /// Its title.
    pub title: &'static str,
    /// Its blocks.
    pub blocks: Vec<Block>,
}

impl Section {
    /// A section of one block without a heading.
    pub fn plain(title: &'static str, rows: Vec<Row>) -> Self {
        let block = Block {
            rows,
            ..Block::default()
        };
        Self {
            title,
            blocks: vec![block],
        }
    }
}

/// The whole report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// From the machine to the target.
    pub sections: Vec<Section>,
}

impl Report {
    /// Why recording would not work; empty if it would.
    pub fn obstacles(&self) -> Vec<&str> {
        let rows = self.sections.iter().flat_map(|section| &section.blocks);
        rows.flat_map(|block| &block.rows)
            .filter_map(|row| match &row.state {
                State::Lacking(reason) => Some(reason.as_str()),
                _ => None,
            })
            .collect()
    }

    /// The report as text, with the verdict as its last line.
    pub fn render(&self, colour: bool) -> String {
        let mut writer = Writer {
            text: String::new(),
            colour,
        };
        for section in &self.sections {
            writer.section(section);
        }
        let obstacles = self.obstacles();
        let verdict = match obstacles.as_slice() {
            [] => "recording would work".to_owned(),
            reasons => format!("recording would not work: {}", reasons.join("; ")),
        };
        writer.line(if obstacles.is_empty() { GREEN } else { RED }, &verdict);
        writer.text
    }
}

const BOLD: &str = "1";
const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";

struct Writer {
    text: String,
    colour: bool,
}

impl Writer {
    fn section(&mut self, section: &Section) {
        self.line(BOLD, section.title);
        for block in &section.blocks {
            self.block(block);
        }
        self.text.push('\n');
    }

    fn block(&mut self, block: &Block) {
        let indent = match &block.heading {
            Some(heading) => {
                self.text.push_str(&format!("    {}\n", printable(heading)));
                6
            }
            None => 4,
        };
        let rows: Vec<Vec<String>> = block
            .rows
            .iter()
            .map(|row| row.cells.iter().map(|cell| printable(cell).into_owned()).collect())
            .collect();
        let width = |column: usize| {
            let cells = rows.iter().filter_map(|cells| cells.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..rows.iter().map(Vec::len).max().unwrap_or(0)).map(width).collect();
        for (row, cells) in block.rows.iter().zip(&rows) {
            let mut line = String::new();
            for (column, (cell, width)) in cells.iter().zip(&widths).enumerate() {
                if column > 0 {
                    line.push_str("  ");
                }
                // Columns, not format!'s width: the last cell must not leave spaces behind.
                let padding = " ".repeat(width - cell.chars().count());
                let (before, after) = if block.numeric.contains(&column) {
                    (padding.as_str(), "")
                } else {
                    ("", padding.as_str())
                };
                line.extend([before, cell, after]);
            }
            self.mark(&row.state);
            self.text.push_str(&" ".repeat(indent - 2));
            self.text.push_str(line.trim_end());
            self.text.push('\n');
            let below = " ".repeat(indent + 4);
            for note in &row.notes {
                self.text.push_str(&format!("{below}{}\n", printable(note)));
            }
            if let Some(remedy) = &row.remedy {
                self.text.push_str(&format!("{below}remedy: {}\n", printable(remedy)));
            }
        }
    }

    /// The margin tells what a row means, so that lacks are found at a glance.
    fn mark(&mut self, state: &State) {
        let (colour, mark) = match state {
            State::Fine => return self.text.push_str("  "),
            State::Limited => (YELLOW, '!'),
            State::Lacking(_) => (RED, 'x'),
        };
        let mark = if self.colour {
            format!("\u{1b}[{colour}m{mark}\u{1b}[0m ")
        } else {
            format!("{mark} ")
        };
        self.text.push_str(&mark);
    }

    fn line(&mut self, colour: &str, text: &str) {
        let text = printable(text);
        if self.colour {
            self.text.push_str(&format!("\u{1b}[{colour}m{text}\u{1b}[0m\n"));
        } else {
            self.text.push_str(&format!("{text}\n"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let numbers = Block {
            heading: Some("/lib/\u{1b}[2Jevil.so".to_owned()),
            numeric: &[1],
            rows: vec![
                Row::new(["malloc", "4", "push rbx"]).note("an allocator's own function"),
                Row::new(["fr\nee", "12", ""]),
            ],
        };
        Report {
            sections: vec![
                Section::plain(
                    "Kernel",
                    vec![
                        Row::new(["version", "6.18"]),
                        Row::new(["uprobes", "perf events"]).limited().remedy("boot 6.13"),
                        Row::new(["BTF", "missing"]).lacking("no BTF", "boot another"),
                    ],
                ),
                Section {
                    title: "Allocators",
                    blocks: vec![numbers],
                },
            ],
        }
    }

    #[test]
    fn columns_marks_remedies_and_the_verdict() {
        insta::assert_snapshot!(report().render(false), @r#"
        Kernel
            version  6.18
        !   uprobes  perf events
                remedy: boot 6.13
        x   BTF      missing
                remedy: boot another

        Allocators
            /lib/\u{1b}[2Jevil.so
              malloc      4  push rbx
                  an allocator's own function
              fr\u{a}ee  12

        recording would not work: no BTF
        "#);
    }

    #[test]
    fn colours_are_only_around_marks_titles_and_the_verdict() {
        let coloured = report().render(true);
        assert_ne!(coloured, report().render(false));
        let mut plain = coloured;
        for code in ["1", "31", "32", "33", "0"] {
            plain = plain.replace(&format!("\u{1b}[{code}m"), "");
        }
        assert_eq!(plain, report().render(false));
    }

    #[test]
    fn limits_are_no_obstacles() {
        let mut report = report();
        report.sections[0].blocks[0].rows.pop();
        assert!(report.obstacles().is_empty());
        assert!(report.render(false).ends_with("\nrecording would work\n"));
    }
}
