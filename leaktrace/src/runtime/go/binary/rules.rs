//! The code of a Go binary behind the seam of all runtimes: its facts as rules of unwind tables, its names as frames.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use leaktrace_common::unwind::{RULE_GO_CGOCALL, RULE_SP, Row, pack_deref};

use super::code::{CgoCall, FixedFrame, GoCode};
use super::executable::Executable;
use super::pclntab;
use crate::model::ElfAddress;
use crate::runtime::go::Go;
use crate::runtime::{Code, Runtime};
use crate::symbolize::Frame;
use crate::unwind::ForcedRule;

/// What a saved frame pointer below the return address is from the CFA.
const BELOW_RETURN_ADDRESS: i16 = -16;

/// Reads what a file has of Go; `None` if it is no Go binary.
pub fn read(file: &File) -> Option<Arc<dyn Code>> {
    let executable = Executable::new(file.try_clone().ok()?).ok()?;
    Some(Arc::new(GoCode::read(&executable)?))
}

impl Code for GoCode {
    fn runtime(&self) -> &'static dyn Runtime {
        &Go
    }

    fn unwind_rules(&self) -> Vec<ForcedRule> {
        let range = |range: &Range<u64>| ElfAddress(range.start)..ElfAddress(range.end);
        let mut rules: Vec<ForcedRule> = self
            .frame_pointer
            .iter()
            .map(|text| ForcedRule::FramePointer(range(text)))
            .collect();
        rules.extend(self.outermost.iter().map(|function| ForcedRule::End(range(function))));
        rules.extend(
            self.fixed
                .iter()
                .map(|frame| ForcedRule::Row(range(&frame.range), fixed(frame))),
        );
        rules.extend(
            self.cgocall
                .iter()
                .map(|call| ForcedRule::Row(range(&call.range), cgocall(call))),
        );
        rules
    }

    fn covers(&self, address: u64) -> bool {
        Self::covers(self, address)
    }

    fn frames(&self, address: u64) -> Vec<Frame> {
        Self::frames(self, address).iter().map(frame).collect()
    }

    fn maps_heap(&self, function: &str) -> bool {
        matches!(function, "runtime.mmap" | "runtime.sysMmap" | "runtime.mmap.func1")
    }
}

fn frame(frame: &pclntab::Frame<'_>) -> Frame {
    Frame {
        function: (*frame.function).into(),
        system_name: (*frame.function).into(),
        file: (*frame.file).into(),
        line: frame.line,
        start_line: frame.start_line,
        inlined: frame.inlined,
        ..Frame::default()
    }
}

fn fixed(frame: &FixedFrame) -> Row {
    Row {
        low: 0,
        rule: RULE_SP,
        bp_offset: if frame.saves_frame_pointer {
            BELOW_RETURN_ADDRESS
        } else {
            0
        },
        cfa: i32::try_from(frame.size).unwrap_or(i32::MAX),
    }
}

fn cgocall(call: &CgoCall) -> Row {
    Row {
        low: 0,
        rule: RULE_GO_CGOCALL,
        bp_offset: call.frame.into(),
        cfa: pack_deref(call.goroutine, call.depth),
    }
}
