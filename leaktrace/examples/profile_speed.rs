//! Measures how long it takes to symbolize and write a profile of 100,000 distinct stacks.
//!
//! `cargo run --release --example profile_speed -- FILE…` takes 200,000 distinct addresses from the code of the files,
//! in proportion to their sizes, and makes stacks of 30 frames of them. Files with debug information take longest.

use std::fs::File;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use leaktrace::export::file;
use leaktrace::report::{FrameLine, LocationId, Mapping, ProfileBuilder};
use leaktrace::symbolize::{Addresses, Frame, SymbolSource, Symbolizer};
use object::{Object, ObjectSection, SectionKind};

const ADDRESSES: u64 = 200_000;
const STACKS: usize = 100_000;
const DEPTH: usize = 30;

struct Code {
    path: String,
    file: File,
    start: u64,
    size: u64,
}

fn code(path: String) -> Result<Code> {
    let file = File::open(&path).with_context(|| format!("failed to open `{path}`"))?;
    let cache = object::ReadCache::new(&file);
    let elf = object::File::parse(&cache).with_context(|| format!("failed to read `{path}`"))?;
    let mut text = elf.sections().filter(|section| section.kind() == SectionKind::Text);
    let largest = text.by_ref().max_by_key(ObjectSection::size).context("no code")?;
    let (start, size) = (largest.address(), largest.size());
    Ok(Code {
        path,
        file,
        start,
        size,
    })
}

fn main() -> Result<()> {
    let files = std::env::args().skip(1).map(code).collect::<Result<Vec<_>>>()?;
    let total: u64 = files.iter().map(|code| code.size).sum();
    ensure!(
        total >= ADDRESSES * 4,
        "give larger files: {total} bytes of code are too few"
    );
    let begin = Instant::now();

    let symbolizer = Symbolizer::new();
    let mut builder = ProfileBuilder::heap();
    let mut locations: Vec<LocationId> = Vec::new();
    let (mut named, mut lines, mut inlined) = (0usize, 0usize, 0usize);
    for (number, code) in (1u64..).zip(&files) {
        let base = number << 40;
        let step = (total / ADDRESSES).max(1);
        let addresses: Vec<u64> = (code.start..code.start + code.size).step_by(step as usize).collect();
        let started = Instant::now();
        let source = SymbolSource::File {
            file: &code.file,
            path: &code.path,
        };
        let frames = symbolizer.symbolize(&source, Addresses::Elf(&addresses));
        println!(
            "{:>7} addresses {:>8.2?}  {}",
            addresses.len(),
            started.elapsed(),
            code.path
        );
        let limit = base + code.start + code.size;
        let mapping = builder.mapping(Mapping {
            start: base,
            limit,
            file: code.path.clone().into(),
            ..Mapping::default()
        });
        for (address, frames) in addresses.iter().zip(&frames) {
            named += usize::from(!frames[0].placeholder);
            lines += usize::from(frames[0].line != 0);
            inlined += frames.len() - 1;
            let frames: Vec<FrameLine<'_>> = frames.iter().map(line).collect();
            locations.push(builder.location(Some(mapping), base + address, &frames));
        }
    }
    let symbolized = begin.elapsed();
    for stack in 0..STACKS {
        let frame = |depth: usize| locations[(stack * 7919 + depth * 104_729 + stack * depth) % locations.len()];
        builder.sample(
            (0..DEPTH).map(frame).collect(),
            &[2, 128, 1, 64],
            Vec::new(),
            Vec::new(),
        );
    }
    let profile = builder.finish();
    let built = begin.elapsed();
    let directory = tempfile::tempdir()?;
    for name in ["x.pb.gz", "x.folded", "x.json", "x.svg"] {
        let started = Instant::now();
        let path = directory.path().join(name);
        file::write(&path, &profile, 3)?;
        println!(
            "{name}: {} KiB in {:.2?}",
            path.metadata()?.len() >> 10,
            started.elapsed()
        );
    }
    println!(
        "{} addresses: {named} named, {lines} with lines, {inlined} inlined frames; {} stacks\n\
         symbolized after {symbolized:.2?}, built after {built:.2?}, all written after {:.2?}",
        locations.len(),
        profile.samples.len(),
        begin.elapsed()
    );
    Ok(())
}

fn line(frame: &Frame) -> FrameLine<'_> {
    FrameLine {
        function: &frame.function,
        system_name: &frame.system_name,
        file: &frame.file,
        line: frame.line,
        column: frame.column,
        start_line: frame.start_line,
        placeholder: frame.placeholder,
    }
}
