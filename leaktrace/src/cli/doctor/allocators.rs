//! What would be hooked in the target, where and why; and what would not.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::report::{Block, Row, Section};
use crate::{
    allocator::detect::{DetectError, Detection, NAMELESS_REMEDY, Skipped},
    probe::plan::{Plan, PlannedProbe, Refused, ReturnProbe},
};

/// The section on allocators.
pub fn section(pid: u32, detection: &Result<Detection, DetectError>, plan: &Plan) -> Section {
    let title = "Allocators";
    match detection {
        Ok(detection) => Section {
            title,
            blocks: blocks(pid, detection, plan),
        },
        Err(DetectError::NoAllocator { looked_in, nameless }) => {
            let row = Row::new([
                "none found; looked for malloc, operator new, __rust_alloc, jemalloc, tcmalloc and mimalloc",
            ]);
            let row = if *nameless {
                row.lacking(
                    format!("pid {pid} is linked statically and stripped: its malloc has no name any more"),
                    NAMELESS_REMEDY,
                )
            } else {
                row.lacking(
                    format!("no known allocator in pid {pid}"),
                    "run a build that is not stripped, or one that is linked dynamically; a program that has just \
                     started may not have loaded its libraries yet",
                )
            };
            Section {
                title,
                blocks: vec![
                    Block {
                        rows: vec![row],
                        ..Block::default()
                    },
                    Block {
                        heading: Some("searched".to_owned()),
                        rows: looked_in.iter().map(searched).collect(),
                        ..Block::default()
                    },
                ],
            }
        }
    }
}

fn searched((path, note): &(PathBuf, Option<String>)) -> Row {
    let path = path.to_string_lossy();
    match note {
        Some(note) => Row::new([&path, note]),
        None => Row::new([&path, "no function of the catalogue"]),
    }
}

fn blocks(pid: u32, detection: &Detection, plan: &Plan) -> Vec<Block> {
    let mut blocks: Vec<Block> = plan
        .files
        .iter()
        .map(|file| Block {
            heading: Some(file.path.to_string_lossy().into_owned()),
            rows: file.probes.iter().map(hooked).collect(),
            ..Block::default()
        })
        .collect();
    if blocks.is_empty() {
        let row = Row::new(["no function can be probed"]).lacking(
            format!("no allocation function of pid {pid} can be probed"),
            "see the reasons below",
        );
        blocks.push(Block {
            rows: vec![row],
            ..Block::default()
        });
    }
    if !plan.refused.is_empty() {
        blocks.push(Block {
            heading: Some("cannot be probed".to_owned()),
            rows: plan.refused.iter().map(refused).collect(),
            ..Block::default()
        });
    }
    blocks.extend(skipped(&detection.skipped));
    let unread: Vec<Row> = detection
        .looked_in
        .iter()
        .filter_map(|(path, note)| Some(Row::new([&path.to_string_lossy(), note.as_deref()?])))
        .map(Row::limited)
        .collect();
    if !unread.is_empty() {
        blocks.push(Block {
            heading: Some("not searched, or not wholly".to_owned()),
            rows: unread,
            ..Block::default()
        });
    }
    blocks
}

fn hooked(probe: &PlannedProbe) -> Row {
    let site = &probe.entry;
    let cost = if site.emulated {
        "emulated (cheap)"
    } else {
        "single-stepped (dear)"
    };
    let returns = match &probe.ret {
        ReturnProbe::None => "no return".to_owned(),
        ReturnProbe::FunctionReturn => "return probe".to_owned(),
        ReturnProbe::Instructions(places) => match places.len() {
            1 => "1 return instruction".to_owned(),
            count => format!("{count} return instructions"),
        },
    };
    let mut row = Row::new([
        &probe.symbol,
        &format!("+{:#x}", site.distance),
        &site.instruction,
        cost,
        &returns,
    ])
    .note(format!("hooked: {}", probe.reason))
    .note(format!("site: {}", site.reason));
    if !probe.aliases.is_empty() {
        row = row.note(format!("also called {}", probe.aliases.join(", ")));
    }
    row
}

fn refused(refused: &Refused) -> Row {
    let path = refused.path.to_string_lossy();
    Row::new([&refused.symbol, &path, &refused.reason])
        .note("what it allocates is not seen, unless another hooked function does it")
        .limited()
}

/// Functions that are not hooked, by file and reason: a C++ library alone has two dozen with the same one.
fn skipped(skipped: &[Skipped]) -> Vec<Block> {
    let mut files: Vec<(&Path, BTreeMap<&str, Vec<&str>>)> = Vec::new();
    for function in skipped {
        let index = match files.iter().position(|(path, _)| *path == function.file) {
            Some(index) => index,
            None => {
                files.push((&function.file, BTreeMap::new()));
                files.len() - 1
            }
        };
        let names = files[index].1.entry(&function.reason).or_default();
        names.push(&function.symbol);
    }
    let row = |(reason, names): (&str, Vec<&str>)| Row::new([reason]).note(names.join(", "));
    files
        .into_iter()
        .map(|(path, reasons)| Block {
            heading: Some(format!("{}, not hooked", path.to_string_lossy())),
            rows: reasons.into_iter().map(row).collect(),
            ..Block::default()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use leaktrace_common::signature::{Op, Signature};

    use super::*;
    use crate::{
        cli::doctor::report::Report,
        model::{ElfAddress, FileOffset},
        probe::{plan::FilePlan, site::Site},
        proc::maps::FileId,
    };

    fn probe(symbol: &str, distance: u32, instruction: &str, ret: ReturnProbe) -> PlannedProbe {
        let signature = Signature::new(Op::Alloc).size(1);
        PlannedProbe {
            symbol: symbol.to_owned(),
            aliases: vec![format!("__libc_{symbol}")],
            signature,
            function: ElfAddress(0x1000),
            entry: Site {
                offset: FileOffset(0x1000 + u64::from(distance)),
                address: ElfAddress(0x1000 + u64::from(distance)),
                distance,
                instruction: instruction.to_owned(),
                signature,
                stack_offset: 0,
                emulated: distance > 0,
                reason: "first emulated instruction".to_owned(),
                code: [].into(),
            },
            ret,
            reason: "an allocator's own function".to_owned(),
            code: Vec::new(),
        }
    }

    fn rendered(detection: &Result<Detection, DetectError>, plan: &Plan) -> String {
        let sections = vec![section(7, detection, plan)];
        Report { sections }.render(false)
    }

    #[test]
    fn hooked_skipped_and_refused() {
        let plan = Plan {
            files: vec![FilePlan {
                file: FileId { device: 1, inode: 2 },
                path: "/lib/libc.so.6".into(),
                access_path: "/proc/7/map_files/0-1".into(),
                shape: None,
                probes: vec![
                    probe("malloc", 4, "push rbx", ReturnProbe::FunctionReturn),
                    probe("free", 3, "je", ReturnProbe::None),
                    probe(
                        "_Znwm",
                        0,
                        "mov rax, rdi",
                        ReturnProbe::Instructions(vec![FileOffset(9); 2]),
                    ),
                ],
            }],
            refused: vec![Refused {
                symbol: "_Znam".to_owned(),
                path: "/lib/libodd.so".into(),
                reason: "it can throw, and its returns cannot be probed".to_owned(),
            }],
            withdrawn: Vec::new(),
        };
        let skip = |symbol: &str, file: &str, reason: &str| Skipped {
            symbol: symbol.to_owned(),
            file: file.into(),
            reason: reason.to_owned(),
        };
        let detection = Detection {
            hooks: Vec::new(),
            skipped: vec![
                skip("_Znwm", "/lib/libstdc++.so.6", "always reaches malloc"),
                skip("_ZdlPv", "/lib/libstdc++.so.6", "only jumps to free"),
                skip("_Znam", "/lib/libstdc++.so.6", "always reaches malloc"),
            ],
            unseen: Vec::new(),
            looked_in: vec![
                ("/lib/libc.so.6".into(), None),
                ("/tmp/\u{7}x".into(), Some("truncated ELF file".to_owned())),
            ],
        };
        insta::assert_snapshot!(rendered(&Ok(detection), &plan), @r#"
        Allocators
            /lib/libc.so.6
              malloc  +0x4  push rbx      emulated (cheap)       return probe
                  hooked: an allocator's own function
                  site: first emulated instruction
                  also called __libc_malloc
              free    +0x3  je            emulated (cheap)       no return
                  hooked: an allocator's own function
                  site: first emulated instruction
                  also called __libc_free
              _Znwm   +0x0  mov rax, rdi  single-stepped (dear)  2 return instructions
                  hooked: an allocator's own function
                  site: first emulated instruction
                  also called __libc__Znwm
            cannot be probed
        !     _Znam  /lib/libodd.so  it can throw, and its returns cannot be probed
                  what it allocates is not seen, unless another hooked function does it
            /lib/libstdc++.so.6, not hooked
              always reaches malloc
                  _Znwm, _Znam
              only jumps to free
                  _ZdlPv
            not searched, or not wholly
        !     /tmp/\u{7}x  truncated ELF file

        recording would work
        "#);
    }

    #[test]
    fn no_allocator() {
        let error = DetectError::NoAllocator {
            looked_in: vec![
                ("/srv/static".into(), None),
                ("/srv/odd".into(), Some("not an ELF file".to_owned())),
            ],
            nameless: false,
        };
        insta::assert_snapshot!(rendered(&Err(error), &Plan::default()), @r"
        Allocators
        x   none found; looked for malloc, operator new, __rust_alloc, jemalloc, tcmalloc and mimalloc
                remedy: run a build that is not stripped, or one that is linked dynamically; a program that has just started may not have loaded its libraries yet
            searched
              /srv/static  no function of the catalogue
              /srv/odd     not an ELF file

        recording would not work: no known allocator in pid 7
        ");
    }

    #[test]
    fn all_refused() {
        let text = rendered(&Ok(Detection::default()), &Plan::default());
        assert!(
            text.ends_with("\nrecording would not work: no allocation function of pid 7 can be probed\n"),
            "{text}"
        );
    }
}
