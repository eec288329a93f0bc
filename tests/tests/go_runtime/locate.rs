//! Globals found by decoding, against the symbol table of unstripped binaries; layouts from DWARF against the built-in.

use std::fs::File;

use leaktrace::runtime::go::executable::Executable;
use leaktrace::runtime::go::locate::{Globals, globals};
use leaktrace::runtime::go::offsets::{Layout, candidates};
use leaktrace::runtime::go::{Area, GoProcess, Source, dwarf};

use super::support::{Form, MINORS, Truth, build, everywhere, goroot};

#[test]
fn decoding_finds_what_the_symbol_table_says() {
    for minor in MINORS.into_iter().filter(|&minor| goroot(minor).is_some()) {
        for form in [Form::Normal, Form::Cgo] {
            let truth = Truth::of(minor, form, "").unwrap();
            let process = GoProcess::attach(truth.program.pid()).unwrap();
            let symbols = process.executable.symbols(&Globals::SYMBOLS);
            assert_eq!(symbols.len(), Globals::SYMBOLS.len(), "Go 1.{minor} {form:?}");
            let decoded = globals(process.table(), |entry, end| {
                process.module.code(&process.executable, entry, end)
            });
            let (layout, _) = process.layout(Area::Collector).unwrap();
            let mut stated = Globals {
                wait_reasons: decoded.wait_reasons,
                ..Globals::default()
            };
            let bias = process.module.bias;
            stated.fill_from_symbols(
                |name| symbols.get(name).map(|at| at + bias),
                layout.work.start_sema.offset as u64,
            );
            assert_eq!(decoded, stated, "Go 1.{minor} {form:?}");
        }
    }
}

#[test]
fn every_area_is_read_with_the_layout_of_its_own_release() {
    for (minor, form) in everywhere() {
        let truth = Truth::of(minor, form, "").unwrap();
        let process = GoProcess::attach(truth.program.pid()).unwrap();
        for area in Area::ALL {
            let (_, source) = process
                .layout(area)
                .unwrap_or_else(|error| panic!("Go 1.{minor} {form:?}: {error}"));
            // Debian may have moved on to a patch release that the table does not hold: the nearest one serves then.
            let nearest = candidates(&process.version)[0].version.clone();
            assert_eq!(source, &Source::Table(nearest), "Go 1.{minor} {form:?}: {area}");
        }
        assert!(
            process.wait_reasons.iter().any(|reason| reason == "chan receive"),
            "Go 1.{minor} {form:?}"
        );
    }
}

#[test]
fn dwarf_states_the_built_in_layout() {
    for minor in MINORS.into_iter().filter(|&minor| goroot(minor).is_some()) {
        let path = build(minor, "truth", Form::Normal).unwrap();
        let executable = Executable::new(File::open(path).unwrap()).unwrap();
        let stated = dwarf::layout(&executable).unwrap_or_else(|| {
            let fields = dwarf::fields(&executable).unwrap_or_default();
            let missing: Vec<_> = Layout::FIELDS
                .iter()
                .filter(|field| !fields.contains_key(**field))
                .collect();
            panic!("Go 1.{minor}: {missing:?}")
        });
        let truth = Truth::of(minor, Form::Normal, "").unwrap();
        let version = GoProcess::attach(truth.program.pid()).unwrap().version;
        let built_in = Layout::from_map(&candidates(&version)[0].map).unwrap();
        assert_eq!(stated, built_in, "Go 1.{minor}");
    }
}
