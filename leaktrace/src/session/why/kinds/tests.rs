use super::*;
use crate::proc::smaps;

const MIB: u64 = 1 << 20;

fn areas(text: &str) -> Vec<Area> {
    smaps::parse(text.as_bytes()).areas
}

/// A line of the text with what is resident, anonymous and dirty, in kB.
fn area(range: &str, rest: &str, rss: u64, anonymous: u64, dirty: u64) -> String {
    format!("{range} {rest}\nRss: {rss} kB\nAnonymous: {anonymous} kB\nShared_Dirty: {dirty} kB\n")
}

fn rows(text: &str, facts: &Facts) -> Vec<(String, u64)> {
    let areas = areas(text);
    let split = classify(&areas, facts);
    let sum: u64 = areas.iter().map(|area| area.rss).sum();
    assert_eq!(split.total(), sum, "every byte in one row");
    split
        .rows
        .iter()
        .map(|(kind, bytes)| (kind.key(), bytes >> 10))
        .collect()
}

#[test]
fn each_mapping_goes_where_it_belongs() {
    let text = [
        area("400000-500000", "r-xp 00000000 08:01 7      /usr/bin/app", 100, 0, 0),
        area("600000-700000", "rw-p 00100000 08:01 7      /usr/bin/app", 60, 40, 40),
        area("800000-900000", "rw-p 00000000 00:00 0      [heap]", 200, 200, 200),
        area("a00000-b00000", "rw-p 00000000 00:00 0", 300, 300, 300),
        area("b00000-c00000", "rwxp 00000000 00:00 0", 12, 12, 12),
        area(
            "d00000-e00000",
            "rw-s 00000000 00:01 8      /memfd:x (deleted)",
            16,
            0,
            16,
        ),
        area(
            "e00000-f00000",
            "rw-s 00000000 00:01 9      /SYSV00000000 (deleted)",
            20,
            0,
            20,
        ),
        area(
            "f00000-f10000",
            "rw-s 00000000 00:01 10     /dev/zero (deleted)",
            24,
            0,
            24,
        ),
        area("f20000-f30000", "rw-s 00000000 00:17 11     /dev/shm/pool", 28, 0, 28),
        area("f30000-f40000", "rw-s 00000000 08:01 12     /var/db", 32, 0, 8),
        area("f40000-f50000", "rw-p 00000000 00:05 13     /dev/zero", 36, 36, 36),
        area(
            "f50000-f60000",
            "rw-p 00000000 00:00 0      [anon:scudo:primary]",
            40,
            40,
            40,
        ),
        area("f60000-f70000", "r--p 00000000 00:00 0      [vvar]", 4, 0, 0),
        area("f70000-f80000", "rw-p 00000000 00:00 0      [stack]", 44, 44, 44),
        area(
            "f80000-f90000",
            "rw-s 00000000 00:0e 14     anon_inode:[io_uring]",
            8,
            0,
            0,
        ),
    ]
    .concat();
    let facts = Facts {
        tmpfs: [libc::makedev(0, 0x17)].into(),
        ..Facts::default()
    };
    let mut found = rows(&text, &facts);
    found.sort();
    let expected = [
        ("anonymous", 336),
        ("file_clean", 144),
        ("file_dirty", 8),
        ("file_private", 40),
        ("heap_brk", 200),
        ("kernel", 12),
        ("made_code", 12),
        ("memfd", 16),
        ("named:scudo:primary", 40),
        ("shared_anonymous", 24),
        ("sysv", 20),
        ("thread_stacks", 44),
        ("tmpfs", 28),
    ];
    assert_eq!(found, expected.map(|(key, bytes)| (key.to_owned(), bytes)));
}

#[test]
fn measured_parts_are_taken_out_of_their_area() {
    let text = area("10000000-20000000", "rw-p 00000000 00:00 0", 1000, 1000, 1000);
    let facts = Facts {
        parts: [(0x1000_0000, vec![(Kind::Stacks, 300 << 10), (Kind::Arenas, 900 << 10)])].into(),
        ..Facts::default()
    };
    // What was measured later may be more than there was.
    assert_eq!(
        rows(&text, &facts),
        [("heap_arenas".to_owned(), 700), ("thread_stacks".to_owned(), 300)]
    );
    let facts = Facts {
        whole: [(0x1000_0000, Kind::GoHeap)].into(),
        parts: [(0x1000_0000, vec![(Kind::GoStacks, 1 << 10)])].into(),
        ..Facts::default()
    };
    assert_eq!(
        rows(&text, &facts),
        [("go_heap".to_owned(), 999), ("go_stacks".to_owned(), 1)]
    );
}

#[test]
fn runtimes_are_known_by_their_files() {
    let runtime = |path: &str| {
        let text = area("10000-20000", &format!("r-xp 00000000 08:01 7 {path}"), 4, 0, 0);
        Runtime::of(&areas(&text))
    };
    assert_eq!(runtime("/usr/lib/jvm/lib/server/libjvm.so"), Some(Runtime::Jvm));
    assert_eq!(runtime("/usr/bin/python3.11"), Some(Runtime::Python));
    assert_eq!(runtime("/usr/lib/libpython3.12.so.1.0"), Some(Runtime::Python));
    assert_eq!(runtime("/usr/local/bin/node"), Some(Runtime::V8));
    assert_eq!(runtime("/usr/sbin/php-fpm8.2"), Some(Runtime::Php));
    assert_eq!(runtime("/usr/bin/pythonic"), None);
    assert_eq!(runtime("/opt/nodelet"), None);
    let with = |runtime| Facts {
        runtime: Some(runtime),
        ..Facts::default()
    };
    let low = area("700000000-780000000", "rw-p 00000000 00:00 0", 8, 8, 8);
    assert_eq!(rows(&low, &with(Runtime::Jvm))[0].0, "java_heap");
    assert_eq!(rows(&low, &with(Runtime::V8))[0].0, "v8_heap");
    assert_eq!(rows(&low, &with(Runtime::Python))[0].0, "anonymous");
    let go = Facts {
        only_go: true,
        ..Facts::default()
    };
    assert_eq!(rows(&low, &go)[0].0, "go_runtime");
}

#[test]
fn a_program_cannot_fill_the_screen_with_names() {
    let text: String = (0..200u64)
        .map(|index| {
            let start = 0x10_0000 + index * 0x1000;
            let range = format!("{start:x}-{:x}", start + 0x1000);
            area(
                &range,
                &format!("rw-p 00000000 00:00 0 [anon:n{index}]"),
                index + 1,
                0,
                0,
            )
        })
        .collect();
    let found = rows(&text, &Facts::default());
    assert_eq!(found.len(), MAX_NAMES + 1);
    assert!(found.iter().any(|(key, _)| key == "named:n199"));
    assert!(found.iter().any(|(key, _)| key == "named:other names"));
}

#[test]
fn totals_do_not_overflow() {
    let areas = [u64::MAX, u64::MAX].map(|rss| Area { rss, ..Area::default() });
    assert_eq!(classify(&areas, &Facts::default()).total(), u64::MAX);
}

proptest::proptest! {
    #[test]
    fn every_byte_is_in_one_row(
        sizes in proptest::collection::vec((0u64..1 << 30, 0u64..1 << 30, 0u64..1 << 30, 0u8..64, 0usize..9), 0..30),
        parts in proptest::collection::vec((0usize..30, 0u64..1 << 31), 0..10),
    ) {
        let names = ["", "[heap]", "[stack]", "[vdso]", "/memfd:a", "/SYSV0", "/dev/zero", "/file", "[anon:x]"];
        let areas: Vec<Area> = sizes.iter().enumerate().map(|(index, (rss, anonymous, dirty, bits, name))| Area {
            start: index as u64 * MIB,
            end: (index as u64 + 1) * MIB,
            write: bits & 1 != 0,
            execute: bits & 2 != 0,
            shared: bits & 4 != 0,
            has_inode: bits & 8 != 0,
            deleted: bits & 16 != 0,
            name: names[*name].to_owned(),
            rss: *rss,
            anonymous: (*anonymous).min(*rss),
            dirty: (*dirty).min(*rss),
            ..Area::default()
        }).collect();
        let mut facts = Facts::default();
        for (index, bytes) in parts {
            facts.parts.entry(index as u64 * MIB).or_default().push((Kind::Stacks, bytes));
        }
        let total: u64 = areas.iter().map(|area| area.rss).sum();
        assert_eq!(classify(&areas, &facts).total(), total);
    }
}
