//! The file of `record --blocks`: each block and mapping that is outstanding, with its address, a JSON object a line.

use std::io::{self, Write};
use std::path::Path;

use crate::export::file::{self, WriteError};
use crate::ledger::Outstanding;
use crate::model::HeapKind;
use crate::session::recording::Finished;

/// Writes it; of a recording by samples, what was taken as a sample.
pub fn write(path: &Path, finished: &Finished) -> Result<(), WriteError> {
    file::replace(path, |output| {
        for process in &finished.processes {
            let pid = process.key.pid;
            let Some(ledger) = finished.outcome.ledgers.get(&pid) else {
                continue;
            };
            for block in ledger.blocks() {
                line(output, pid, HeapKind::Native, &block, finished.outcome.now)?;
            }
            for mapping in ledger.mappings() {
                line(output, pid, HeapKind::Mmap, &mapping, finished.outcome.now)?;
            }
        }
        Ok(())
    })
}

fn line(output: &mut dyn Write, pid: u32, heap: HeapKind, memory: &Outstanding, now: u32) -> io::Result<()> {
    let age = f64::from(now.saturating_sub(memory.born)) / 100.0;
    write!(
        output,
        r#"{{"pid":{pid},"heap":"{heap}","address":"{:#x}","bytes":{},"age_seconds":{age},"stack":["#,
        memory.address.0, memory.bytes
    )?;
    for (index, frame) in memory.frames.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        write!(output, r#"{comma}"{:#x}""#, frame.0)?;
    }
    writeln!(output, "]}}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ProcessAddress;

    #[test]
    fn each_line_is_json() {
        let block = Outstanding {
            address: ProcessAddress(0x5555_0010),
            bytes: 100,
            frames: [ProcessAddress(0x10), ProcessAddress(0x20)].into(),
            born: 50,
        };
        let mut output = Vec::new();
        line(&mut output, 7, HeapKind::Native, &block, 200).expect("a Vec takes all");
        let value: serde_json::Value = serde_json::from_slice(&output).expect("JSON");
        let expected = serde_json::json!({
            "pid": 7, "heap": "native", "address": "0x55550010", "bytes": 100, "age_seconds": 1.5,
            "stack": ["0x10", "0x20"],
        });
        assert_eq!(value, expected);
    }
}
