//! A recorded process with words of its memory changed: position and value come from the input.
#![no_main]

use std::sync::LazyLock;

use leaktrace::runtime::go::recording::Recording;
use libfuzzer_sys::fuzz_target;

static FIXTURE: LazyLock<Recording> = LazyLock::new(|| {
    Recording::from_bytes(include_bytes!("../../leaktrace/fixtures/go-1.23.recording")).expect("the fixture is whole")
});

fuzz_target!(|data: &[u8]| {
    let mut recording = FIXTURE.clone();
    let starts: Vec<u64> = recording.image.segments().map(|(start, _)| start).collect();
    for change in data.chunks_exact(14) {
        let number = |bytes: &[u8]| bytes.iter().fold(0usize, |value, &byte| value << 8 | usize::from(byte));
        let start = starts[number(&change[..2]) % starts.len()];
        let Some(bytes) = recording.image.segment_mut(start).filter(|bytes| bytes.len() >= 8) else { continue };
        let at = number(&change[2..5]) % (bytes.len() / 8) * 8;
        // One bit says whether the word becomes a pointer to something recorded.
        let value = match change[5] & 1 {
            0 => number(&change[6..14]) as u64,
            _ => starts[number(&change[6..14]) % starts.len()],
        };
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    recording.read();
});
