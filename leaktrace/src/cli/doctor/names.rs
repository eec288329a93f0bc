//! Files whose functions and lines will lack names, because a part of them is larger than what is read.

use std::sync::Arc;

use super::report::{Row, Section};
use crate::{
    session::survey::{CodeFile, Survey},
    symbolize::snapshot,
};

/// The section on names, where some will be missing.
pub fn section(survey: &Survey) -> Option<Section> {
    let rows: Vec<Row> = survey.files.iter().filter_map(row).collect();
    (!rows.is_empty()).then(|| Section::plain("Names", rows))
}

fn row(file: &Arc<CodeFile>) -> Option<Row> {
    let left_out = snapshot::left_out(&file.file).ok()?;
    let row = Row::new([&file.path.to_string_lossy(), "not read wholly"]);
    (!left_out.is_empty()).then(|| left_out.into_iter().fold(row, Row::note).limited())
}
