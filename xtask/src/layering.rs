//! Which module of `leaktrace/src` may know which, and finding references against that.
//!
//! Reads tokens, not text: comments and strings never count, grouped imports and paths inside macros do.
//! Invariant: every module is in [`MODULES`]; one that is not is itself a violation, so that the table stays whole.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, anyhow};
use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// One module of the library: the height it stands at, and whom it may know beside those below it.
struct Module {
    name: &'static str,
    /// Those with a smaller number are below. Equal height: strangers, unless in `beside`.
    height: u8,
    /// Modules of the same height that it may know.
    beside: &'static [&'static str],
    /// The only ones it may know, where that is fewer than all below it.
    only: Option<&'static [&'static str]>,
}

const fn module(name: &'static str, height: u8, beside: &'static [&'static str]) -> Module {
    Module {
        name,
        height,
        beside,
        only: None,
    }
}

/// The arrows, from bottom to top. `lib.rs` and `main.rs` stand above all.
const MODULES: &[Module] = &[
    module("model", 0, &[]),
    module("proc", 1, &[]),
    module("object", 1, &[]),
    module("allocator", 2, &[]),
    module("event", 3, &[]),
    module("probe", 3, &[]),
    module("unwind", 3, &[]),
    module("symbolize", 3, &[]),
    module("verdict", 3, &["ledger"]),
    // Does no I/O: it sees neither processes nor files.
    Module {
        name: "ledger",
        height: 3,
        beside: &["event"],
        only: Some(&["model", "event"]),
    },
    module("report", 3, &["ledger", "symbolize"]),
    Module {
        name: "export",
        height: 3,
        beside: &["report"],
        only: Some(&["report", "model"]),
    },
    // A managed runtime is read from outside: it must work without any BPF.
    module("runtime", 3, &["symbolize", "report", "unwind"]),
    module("bpf", 3, &["event", "probe", "unwind"]),
    module("session", 4, &[]),
    module("api", 5, &[]),
    module("monitor", 5, &["api"]),
    module("daemon", 6, &[]),
    module("cli", 7, &[]),
    // In tests and in the fuzzer alone.
    module("fuzzing", 8, &[]),
];

/// A crate or keyword that only some places may use.
struct Reserved {
    word: &'static str,
    /// Path prefixes below `leaktrace/src` that may use it.
    places: &'static [&'static str],
}

const RESERVED: &[Reserved] = &[
    Reserved {
        word: "aya",
        places: &["bpf/"],
    },
    Reserved {
        word: "aya_obj",
        places: &["bpf/"],
    },
    Reserved {
        word: "aya_log",
        places: &["bpf/"],
    },
    Reserved {
        word: "unsafe",
        places: &["bpf/", "proc/memory.rs"],
    },
];

/// Modules whose code is the same for all managed runtimes: no identifier in them names Go. The daemon and the command line
/// have words of the API and of screens that do.
const RUNTIME_NEUTRAL: &[&str] = &[
    "model",
    "proc",
    "object",
    "allocator",
    "event",
    "probe",
    "unwind",
    "symbolize",
    "verdict",
    "ledger",
    "report",
    "export",
    "bpf",
    "session",
];

/// Files of those that name Go all the same: kinds of heap have their words in one place, and the walk in userspace follows
/// the rules that the kernel side has for Go's stacks. Memory by kind is not behind the seam yet.
const NAMING_GO: &[&str] = &["model/heap.rs", "unwind/replay.rs", "unwind/tests/", "session/why/"];

/// Who may reach behind the seam of all runtimes: Go itself, the commands that are about Go, memory by kind, and the fuzzer.
const BEHIND_THE_SEAM: &[&str] = &[
    "runtime/",
    "cli/go.rs",
    "cli/go/",
    "cli/debug/go_read.rs",
    "cli/exit.rs",
    "session/why/",
    "fuzzing/go.rs",
];

/// A reference that must not be.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    file: PathBuf,
    line: usize,
    what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.what)
    }
}

/// All violations below `source`, in order of file and line.
///
/// # Errors
/// When a file cannot be read or is no Rust.
pub fn check(source: &Path) -> Result<BTreeSet<Violation>> {
    let mut violations = BTreeSet::new();
    let mut directories = vec![source.to_owned()];
    while let Some(directory) = directories.pop() {
        let entries = fs::read_dir(&directory).with_context(|| format!("failed to list `{}`", directory.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).with_context(|| format!("failed to read `{}`", path.display()))?;
                let relative = path.strip_prefix(source).expect("it was found below the source folder");
                violations.extend(check_file(relative, &text)?);
            }
        }
    }
    Ok(violations)
}

/// The violations of one file, `path` being relative to `leaktrace/src`.
fn check_file(path: &Path, text: &str) -> Result<Vec<Violation>> {
    let tokens =
        TokenStream::from_str(text).map_err(|error| anyhow!("failed to read `{}` as Rust: {error}", path.display()))?;
    let mut words = Vec::new();
    collect(tokens.clone(), &mut words);

    let first = path.iter().next().unwrap_or_default().to_string_lossy();
    let name = first.strip_suffix(".rs").unwrap_or(&first);
    let shown = path.to_string_lossy();
    let mut found = Vec::new();
    let mut report = |line, what: String| {
        found.push(Violation {
            file: path.to_owned(),
            line,
            what,
        })
    };

    if !matches!(name, "lib" | "main") {
        match MODULES.iter().find(|module| module.name == name) {
            Some(module) => {
                for word in words.iter().filter(|word| word.of_crate) {
                    if let Some(what) = forbidden(module, &word.text) {
                        report(word.line, what);
                    }
                }
            }
            None => report(1, format!("`{name}` has no place in the layering: add it to MODULES")),
        }
    }
    let is_in = |places: &[&str]| places.iter().any(|place| shown.starts_with(place));
    let mut go = Go::default();
    go.find(tokens);
    if !is_in(BEHIND_THE_SEAM) {
        for line in go.paths {
            report(
                line,
                "`runtime::go` is reached through the traits of `runtime`".to_owned(),
            );
        }
    }
    if RUNTIME_NEUTRAL.contains(&name) && !is_in(NAMING_GO) {
        for (line, word) in go.names {
            report(
                line,
                format!("`{word}` names Go: `{name}` is the same for all runtimes"),
            );
        }
    }
    for reserved in RESERVED
        .iter()
        .filter(|reserved| !reserved.places.iter().any(|place| shown.starts_with(place)))
    {
        for word in words.iter().filter(|word| !word.of_crate && word.text == reserved.word) {
            report(
                word.line,
                format!("`{}` belongs to {} alone", reserved.word, reserved.places.join(" and ")),
            );
        }
    }
    Ok(found)
}

/// Why `module` may not know `other`; `None` if it may, or if `other` is no module.
fn forbidden(module: &Module, other: &str) -> Option<String> {
    let other = MODULES.iter().find(|candidate| candidate.name == other)?;
    if other.name == module.name {
        return None;
    }
    let allowed = match module.only {
        Some(only) => only.contains(&other.name),
        None => other.height < module.height || module.beside.contains(&other.name),
    };
    (!allowed).then(|| format!("`{}` must not know `{}`", module.name, other.name))
}

/// An identifier of interest.
struct Word {
    text: String,
    line: usize,
    /// It is what follows `crate::`.
    of_crate: bool,
}

/// Where Go is named.
#[derive(Default)]
struct Go {
    /// Identifiers that name it.
    names: Vec<(usize, String)>,
    /// Paths through `runtime::go`.
    paths: Vec<usize>,
}

impl Go {
    fn find(&mut self, tokens: TokenStream) {
        let trees: Vec<TokenTree> = tokens.into_iter().collect();
        let is_colon =
            |tree: Option<&TokenTree>| matches!(tree, Some(TokenTree::Punct(punct)) if punct.as_char() == ':');
        for (index, tree) in trees.iter().enumerate() {
            let behind_runtime = index >= 3
                && is_colon(trees.get(index - 1))
                && is_colon(trees.get(index - 2))
                && matches!(&trees[index - 3], TokenTree::Ident(ident) if ident == "runtime");
            match tree {
                TokenTree::Ident(ident) => {
                    let line = ident.span().start().line;
                    if behind_runtime && ident == "go" {
                        self.paths.push(line);
                    }
                    if names_go(&ident.to_string()) {
                        self.names.push((line, ident.to_string()));
                    }
                }
                TokenTree::Group(group) => {
                    if behind_runtime {
                        let mut words = Vec::new();
                        first_segments(group.stream(), &mut words);
                        let through = words.iter().filter(|word| word.text == "go");
                        self.paths.extend(through.map(|word| word.line));
                    }
                    self.find(group.stream());
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
        }
    }
}

/// Whether an identifier names Go: `GoHeap`, `is_go`, `goroutines`. The verb in a longer name (`they_go_first`) does not.
fn names_go(identifier: &str) -> bool {
    let mut parts: Vec<String> = vec![String::new()];
    let mut before_is_lower = false;
    for c in identifier.chars() {
        if c == '_' || c.is_uppercase() && before_is_lower {
            parts.push(String::new());
        }
        if c != '_'
            && let Some(part) = parts.last_mut()
        {
            part.extend(c.to_lowercase());
        }
        before_is_lower = c.is_lowercase();
    }
    let first = parts.first().is_some_and(|part| part == "go");
    let short = parts.len() <= 2 && parts.iter().any(|part| part == "go");
    let own = ["goroutine", "goroutines", "pclntab", "gopclntab", "golang", "cgo"];
    first || short || parts.iter().any(|part| own.contains(&part.as_str()))
}

/// All identifiers of a token tree, those directly behind `crate::` marked.
fn collect(tokens: TokenStream, words: &mut Vec<Word>) {
    let trees: Vec<TokenTree> = tokens.into_iter().collect();
    let is_colon = |tree: Option<&TokenTree>| matches!(tree, Some(TokenTree::Punct(punct)) if punct.as_char() == ':');
    for (index, tree) in trees.iter().enumerate() {
        // A path's first segment counts, `thing.aya` or `model::aya` does not.
        let behind_crate = index >= 3
            && is_colon(trees.get(index - 1))
            && is_colon(trees.get(index - 2))
            && matches!(&trees[index - 3], TokenTree::Ident(ident) if ident == "crate");
        match tree {
            TokenTree::Ident(ident) => {
                let inner = index >= 2 && is_colon(trees.get(index - 1)) && is_colon(trees.get(index - 2));
                if behind_crate || !inner {
                    words.push(Word {
                        text: ident.to_string(),
                        line: ident.span().start().line,
                        of_crate: behind_crate,
                    });
                }
            }
            TokenTree::Group(group) if behind_crate && group.delimiter() == Delimiter::Brace => {
                first_segments(group.stream(), words);
            }
            TokenTree::Group(group) => collect(group.stream(), words),
            TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
    }
}

/// The first segment of each path in `{a::b, c::{d, e}, f}`.
fn first_segments(tokens: TokenStream, words: &mut Vec<Word>) {
    let mut at_start = true;
    for tree in tokens {
        match tree {
            TokenTree::Punct(punct) if punct.as_char() == ',' => at_start = true,
            TokenTree::Ident(ident) if at_start => {
                words.push(Word {
                    text: ident.to_string(),
                    line: ident.span().start().line,
                    of_crate: true,
                });
                at_start = false;
            }
            _ => at_start = false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violations(path: &str, text: &str) -> Vec<String> {
        let found = check_file(Path::new(path), text).expect("the text is Rust");
        found
            .iter()
            .map(|violation| format!("{}: {}", violation.line, violation.what))
            .collect()
    }

    #[test]
    fn arrows_down_are_allowed() {
        let text = "use crate::{model::BuildId, object::{Image, Symbol}, proc};\nfn f() { crate::allocator::find() }";
        assert_eq!(violations("probe/plan.rs", text), [""; 0]);
        assert_eq!(violations("cli/mod.rs", "use crate::session::Session;"), [""; 0]);
    }

    #[test]
    fn an_arrow_up_is_caught_in_each_form() {
        assert_eq!(
            violations("object/elf.rs", "use crate::ledger::Ledger;"),
            ["1: `object` must not know `ledger`"]
        );
        assert_eq!(
            violations(
                "model/mod.rs",
                "use crate::{\n    model::BuildId,\n    session::{self, Session},\n};"
            ),
            ["3: `model` must not know `session`"]
        );
        assert_eq!(
            violations("proc/maps.rs", "fn f() {\n    g(crate::cli::parse());\n}"),
            ["2: `proc` must not know `cli`"]
        );
        assert_eq!(
            violations("event/mod.rs", "macro_rules! m { () => { crate::bpf::X }; }"),
            ["1: `event` must not know `bpf`"]
        );
    }

    #[test]
    fn strangers_of_one_height_are_caught() {
        assert_eq!(
            violations("unwind/mod.rs", "use crate::bpf::X;"),
            ["1: `unwind` must not know `bpf`"]
        );
        assert_eq!(
            violations("runtime/go/heap.rs", "use crate::bpf::X;"),
            ["1: `runtime` must not know `bpf`"]
        );
    }

    #[test]
    fn exporters_see_the_report_alone() {
        assert_eq!(
            violations("export/svg.rs", "use crate::{model::Bytes, report::Report};"),
            [""; 0]
        );
        assert_eq!(
            violations("export/svg.rs", "use crate::proc::maps;"),
            ["1: `export` must not know `proc`"]
        );
        assert_eq!(
            violations("export/svg.rs", "use crate::ledger::X;"),
            ["1: `export` must not know `ledger`"]
        );
    }

    #[test]
    fn the_ledger_does_no_io() {
        assert_eq!(
            violations("ledger/mod.rs", "use crate::proc::maps;"),
            ["1: `ledger` must not know `proc`"]
        );
    }

    #[test]
    fn only_bpf_names_aya() {
        assert_eq!(
            violations("session/mod.rs", "use aya::Ebpf;"),
            ["1: `aya` belongs to bpf/ alone"]
        );
        assert_eq!(
            violations("session/mod.rs", "fn f(x: aya::Ebpf) {}"),
            ["1: `aya` belongs to bpf/ alone"]
        );
        assert_eq!(violations("bpf/load.rs", "use aya::Ebpf;"), [""; 0]);
        assert_eq!(
            violations("session/mod.rs", "// aya\nconst X: &str = \"aya\";"),
            [""; 0]
        );
    }

    #[test]
    fn unsafe_code_has_its_places() {
        let text = "fn f() {\n    unsafe { g() }\n}";
        assert_eq!(
            violations("proc/maps.rs", text),
            ["2: `unsafe` belongs to bpf/ and proc/memory.rs alone"]
        );
        assert_eq!(violations("proc/memory.rs", text), [""; 0]);
        assert_eq!(violations("bpf/maps.rs", text), [""; 0]);
    }

    #[test]
    fn go_stands_behind_the_seam_of_all_runtimes() {
        let reached = "`runtime::go` is reached through the traits of `runtime`";
        for text in [
            "use crate::runtime::go::GoProcess;",
            "use crate::{model, runtime::{RuntimeError, go::GoError}};",
            "fn f() { crate::runtime::go::buildinfo::parse(x) }",
        ] {
            assert_eq!(
                violations("daemon/answers.rs", text),
                [format!("1: {reached}")],
                "{text}"
            );
            assert_eq!(violations("cli/go/heap.rs", text), [""; 0]);
            assert_eq!(violations("runtime/mod.rs", text), [""; 0]);
        }
        assert_eq!(
            violations("cli/top/local.rs", "use crate::runtime::{self, Attached};\nfn go() {}"),
            [""; 0]
        );
    }

    #[test]
    fn what_serves_all_runtimes_names_none() {
        let named = |word| format!("1: `{word}` names Go: `session` is the same for all runtimes");
        for (text, word) in [
            ("fn is_go() {}", "is_go"),
            ("struct GoHeap;", "GoHeap"),
            ("fn f(x: HeapKind) { x == HeapKind::Go }", "Go"),
            ("const GO_STACK_HI: u64 = 8;", "GO_STACK_HI"),
            ("fn f() { g(&self.goroutines) }", "goroutines"),
        ] {
            assert_eq!(violations("session/live.rs", text), [named(word)]);
            assert_eq!(violations("daemon/api.rs", text), [""; 0]);
        }
        let verbs = "fn they_go_first() {}\nstruct Going;\nlet ago = cargo(\"go\"); // Go";
        assert_eq!(violations("session/live.rs", verbs), [""; 0]);
        assert_eq!(violations("model/heap.rs", "enum HeapKind { Go }"), [""; 0]);
    }

    #[test]
    fn a_module_without_a_place_is_caught() {
        assert_eq!(
            violations("utils.rs", ""),
            ["1: `utils` has no place in the layering: add it to MODULES"]
        );
    }

    #[test]
    fn comments_and_strings_do_not_count() {
        assert_eq!(
            violations("model/mod.rs", "//! See crate::session.\n/// [`crate::cli`]\nfn f() {}"),
            [""; 0]
        );
    }

    #[test]
    fn no_module_knows_one_that_knows_it() {
        for module in MODULES {
            for other in module.beside {
                let other = MODULES
                    .iter()
                    .find(|candidate| candidate.name == *other)
                    .expect("it is in the table");
                assert!(
                    !other.beside.contains(&module.name),
                    "{} and {} know each other",
                    module.name,
                    other.name
                );
                assert_eq!(module.height, other.height);
            }
        }
    }
}
