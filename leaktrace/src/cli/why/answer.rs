//! The answer of `leaktrace why` as data: what `--json` prints, and what the text is made of.
//!
//! Keys are stable: README documents them, and new ones may come. Pure: from [`Findings`] to an [`Answer`].

use serde::Serialize;

use super::sites::{self, Site};
use crate::{
    model::HeapKind,
    report::{loss::Losses, profile::Profile},
    session::why::{
        course::{self, Verdict},
        family::Member,
        kinds::Kind,
        snapshot::Snapshot,
        watch::Findings,
    },
};

/// Version of the form.
const VERSION: u32 = 1;
/// Sites of each sort, children, and points of the course that are told.
const MAX_SITES: usize = 20;
const MAX_CHILDREN: usize = 10;
/// Growth of which it is worth to ask where it comes from.
pub const WORTH: i64 = 256 << 10;
/// What an allocator takes for a block besides its bytes, at most for usual ones.
const BLOCK_OVERHEAD: i64 = 32;

/// Why memory grew.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// Version of this form.
    pub version: u32,
    /// The process.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// Seconds between both moments.
    pub seconds: f64,
    /// It has ended meanwhile.
    pub ended: bool,
    /// How its size went: `grows_steadily`, `grows_unevenly`, `one_step`, `steady`, `freed_again`, `shrinks`, `unknown`.
    pub verdict: &'static str,
    /// Whether it, or a child, grows: what the exit status says.
    pub grows: bool,
    /// Resident memory.
    pub resident: Change,
    /// Its largest size meanwhile.
    pub peak: u64,
    /// Share of the growth in kinds that are known, 0 to 1; nothing where there was none.
    pub explained_by_kind: Option<f64>,
    /// Share of the growth that has a stack; nothing where there was none, or it was not followed.
    pub explained_by_stack: Option<f64>,
    /// Resident memory by kind, each byte once.
    pub kinds: Vec<Row>,
    /// What is not resident memory: `page_tables`, `swap`, `hugetlb`.
    pub beside: Vec<Row>,
    /// What the native allocator's heap grew by.
    pub native: Option<Native>,
    /// A runtime whose heap is not read.
    pub runtime: Option<&'static str>,
    /// Code that the growth comes from.
    pub sites: Vec<Site>,
    /// Goroutines that became more, by the statement that started them.
    pub goroutines: Vec<Goroutines>,
    /// Children, the one that grew most first.
    pub children: Vec<Child>,
    /// What was missed.
    pub losses: Vec<Loss>,
    /// What else is to be said.
    pub notes: Vec<String>,
    /// The command that goes deeper.
    pub next: String,
}

/// Bytes at both moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Change {
    /// At the begin.
    pub before: u64,
    /// At the end.
    pub after: u64,
    /// The difference.
    pub growth: i64,
    /// Of that, a minute.
    pub per_minute: i64,
}

impl Change {
    fn new(before: u64, after: u64, seconds: f64) -> Self {
        let growth = whole(after).saturating_sub(whole(before));
        Self {
            before,
            after,
            growth,
            per_minute: per_minute(growth, seconds),
        }
    }
}

/// One kind of memory.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Stable name.
    pub kind: String,
    /// For people.
    pub title: String,
    /// How much.
    #[serde(flatten)]
    pub bytes: Change,
}

/// The native allocator's heap.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Native {
    /// Allocated meanwhile and not freed.
    pub outstanding: i64,
    /// Blocks of it.
    pub blocks: i64,
    /// By how much the heap grew at least without blocks in use: it is free, or fragmented. Nothing where that is not
    /// known.
    pub held_at_least: Option<i64>,
}

/// Goroutines of one `go` statement.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Goroutines {
    /// Function with the statement.
    pub function: String,
    /// Its file.
    pub file: String,
    /// The line.
    pub line: i64,
    /// How many there are.
    pub count: u64,
    /// How many more than before.
    pub growth: i64,
}

/// A descendant.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Child {
    /// Its pid.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// Resident at last.
    pub resident: u64,
    /// By how much it grew since it was seen first.
    pub growth: i64,
    /// How.
    pub verdict: &'static str,
}

/// Something that was missed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Loss {
    /// Its name.
    pub name: String,
    /// How often.
    pub count: u64,
    /// What it means.
    pub meaning: String,
}

fn whole(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Bytes a minute.
pub fn per_minute(bytes: i64, seconds: f64) -> i64 {
    if seconds > 0.0 {
        (bytes as f64 * 60.0 / seconds).round() as i64
    } else {
        0
    }
}

/// Makes the answer. `command` is how the process was started, if it was.
pub fn answer(findings: &Findings, command: Option<&str>) -> Answer {
    let seconds = findings.seconds;
    let (before, after) = (&findings.before, &findings.after);
    let resident = Change::new(before.split.total(), after.split.total(), seconds);
    let verdict = course::judge(&findings.course);
    let (native_sites, outstanding) = of(findings.native.as_ref(), HeapKind::Native, seconds);
    let (resident_sites, touched) = of(findings.resident.as_ref(), HeapKind::Resident, seconds);
    // Of what was touched inside of allocation functions the stack is that of the blocks that are still there.
    let inside = resident_sites
        .iter()
        .filter(|site| site.function == sites::INSIDE)
        .fold(0i64, |sum, site| sum.saturating_add(site.bytes));
    let with_stack = touched.saturating_sub(inside).saturating_add(inside.min(outstanding));
    let grown = findings.go.as_ref();
    let (go_sites, _) = of(grown.and_then(|go| go.heap.as_ref()), HeapKind::Go, seconds);
    let kinds = rows(before, after, seconds);
    let is_growth = resident.growth >= WORTH;
    let share = |part: i64| (part as f64 / resident.growth as f64).clamp(0.0, 1.0);
    let unknown = kinds
        .iter()
        .find(|row| row.kind == Kind::Unknown.key())
        .map_or(0, |row| row.bytes.growth.max(0));
    let mut notes: Vec<String> = findings.notes.clone();
    notes.extend(after.notes.iter().cloned());
    notes.extend(grown.into_iter().flat_map(|go| go.notes.iter().cloned()));
    if let Some(remedy) = after.runtime.and_then(|runtime| runtime.names_remedy(findings.key.pid)) {
        notes.push(remedy);
    }
    let children: Vec<Child> = findings.family.iter().take(MAX_CHILDREN).map(child).collect();
    let grows = verdict.grows() || findings.family.iter().any(|member| member.verdict().grows());
    let mut answer = Answer {
        version: VERSION,
        pid: findings.key.pid,
        comm: findings.comm.clone(),
        seconds,
        ended: findings.ended,
        verdict: verdict.key(),
        grows,
        resident,
        peak: findings
            .course
            .iter()
            .map(|(_, bytes)| *bytes)
            .fold(resident.after, u64::max),
        explained_by_kind: is_growth.then(|| share(resident.growth - unknown)),
        explained_by_stack: findings
            .resident
            .as_ref()
            .filter(|_| is_growth)
            .map(|_| share(with_stack)),
        native: findings
            .native
            .as_ref()
            .map(|_| native(&kinds, outstanding, &native_sites)),
        kinds,
        beside: beside(before, after, seconds),
        runtime: after.runtime.map(|runtime| runtime.name()),
        sites: [native_sites, go_sites, resident_sites]
            .into_iter()
            .flat_map(|sites| sites.into_iter().take(MAX_SITES))
            .collect(),
        goroutines: grown.map_or_else(Vec::new, goroutines),
        children,
        losses: losses(&[findings.native.as_ref(), findings.resident.as_ref()]),
        notes,
        next: String::new(),
    };
    answer.next = next(&answer, verdict, command);
    answer
}

fn of(profile: Option<&Profile>, kind: HeapKind, seconds: f64) -> (Vec<Site>, i64) {
    profile.map_or_else(Default::default, |profile| sites::sites(profile, kind, seconds))
}

/// Rows of both moments, the one that grew most first.
fn rows(before: &Snapshot, after: &Snapshot, seconds: f64) -> Vec<Row> {
    let kinds: std::collections::BTreeSet<&Kind> = before.split.rows.keys().chain(after.split.rows.keys()).collect();
    let mut rows: Vec<Row> = kinds
        .into_iter()
        .map(|kind| Row {
            kind: kind.key(),
            title: kind.title(after.runtime),
            bytes: Change::new(before.split.get(kind), after.split.get(kind), seconds),
        })
        .collect();
    rows.sort_by_key(|row| (std::cmp::Reverse(row.bytes.growth), std::cmp::Reverse(row.bytes.after)));
    rows
}

fn beside(before: &Snapshot, after: &Snapshot, seconds: f64) -> Vec<Row> {
    let row = |kind: &str, title: &str, value: fn(&Snapshot) -> u64| Row {
        kind: kind.to_owned(),
        title: title.to_owned(),
        bytes: Change::new(value(before), value(after), seconds),
    };
    let rows = [
        row("page_tables", "page tables", |snapshot| snapshot.page_tables),
        row("swap", "swap", |snapshot| snapshot.swap),
        row("hugetlb", "huge pages set aside", |snapshot| snapshot.hugetlb),
    ];
    rows.into_iter()
        .filter(|row| row.bytes.before > 0 || row.bytes.after > 0)
        .collect()
}

/// Blocks in use cannot have grown by more than what was allocated meanwhile and is still there; the rest of the heap's
/// growth is memory that the allocator holds. Blocks that it mapped by themselves only make that less.
fn native(kinds: &[Row], outstanding: i64, sites: &[Site]) -> Native {
    let heap = [Kind::Brk.key(), Kind::Arenas.key()];
    let grown: i64 = kinds
        .iter()
        .filter(|row| heap.contains(&row.kind))
        .map(|row| row.bytes.growth)
        .fold(0, i64::saturating_add);
    let blocks = sites.iter().fold(0i64, |sum, site| sum.saturating_add(site.objects));
    let in_use = outstanding.saturating_add(blocks.saturating_mul(BLOCK_OVERHEAD));
    let held = grown.saturating_sub(in_use);
    Native {
        outstanding,
        blocks,
        held_at_least: (held >= WORTH && held >= grown / 10).then_some(held),
    }
}

fn goroutines(grown: &crate::session::why::go::Grown) -> Vec<Goroutines> {
    let of = |group: &crate::session::why::go::Goroutines| Goroutines {
        function: group.function.clone(),
        file: group.file.clone(),
        line: group.line,
        count: group.count,
        growth: group.growth,
    };
    grown.goroutines.iter().map(of).collect()
}

fn child(member: &Member) -> Child {
    Child {
        pid: member.key.pid,
        comm: member.comm.clone(),
        resident: member.course.last().map_or(0, |last| last.1),
        growth: member.growth(),
        verdict: member.verdict().key(),
    }
}

fn losses(profiles: &[Option<&Profile>]) -> Vec<Loss> {
    let mut all = Losses::new();
    for profile in profiles.iter().flatten() {
        for loss in profile.metadata.losses.iter() {
            all.add(&loss.name, loss.count, &loss.meaning);
        }
    }
    all.iter()
        .map(|loss| Loss {
            name: loss.name.clone(),
            count: loss.count,
            meaning: loss.meaning.clone(),
        })
        .collect()
}

/// The child to look at: it grew more than the process itself.
pub fn worst_child(answer: &Answer) -> Option<&Child> {
    let child = answer.children.first()?;
    (child.growth >= WORTH && child.growth > answer.resident.growth).then_some(child)
}

/// The command that goes deeper.
fn next(answer: &Answer, verdict: Verdict, command: Option<&str>) -> String {
    let pid = answer.pid;
    if let Some(child) = worst_child(answer) {
        return format!("leaktrace why -p {}", child.pid);
    }
    if answer.ended {
        return match command {
            Some(command) => format!("leaktrace record -- {command}"),
            None => "leaktrace why -p PID, of a process that runs".to_owned(),
        };
    }
    let stands_out = |kind: &str| {
        let row = answer.kinds.iter().find(|row| row.kind == kind);
        row.is_some_and(|row| row.bytes.growth >= WORTH && row.bytes.growth >= answer.resident.growth / 2)
    };
    match verdict {
        Verdict::Steady | Verdict::Unknown | Verdict::Shrinks | Verdict::FreedAgain => {
            format!("leaktrace why -p {pid} -d 10m")
        }
        _ if stands_out("go_stacks") => format!("leaktrace go goroutines -p {pid}"),
        // Where the program keeps no profile there are no sampled objects either.
        _ if stands_out("go_heap") => match answer.sites.iter().any(|site| site.heap == HeapKind::Go.name()) {
            true => format!("leaktrace go objects -p {pid}"),
            false => format!("leaktrace go census -p {pid}"),
        },
        _ if answer
            .sites
            .first()
            .is_some_and(|site| site.heap == HeapKind::Native.name()) =>
        {
            format!("leaktrace record -p {pid} -d 2m")
        }
        _ => format!("leaktrace why -p {pid} -d 10m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: i64 = 1 << 20;

    fn heap(growth: i64) -> Row {
        Row {
            kind: Kind::Brk.key(),
            title: String::new(),
            bytes: Change {
                growth,
                ..Change::default()
            },
        }
    }

    fn blocks(objects: i64) -> Site {
        Site {
            objects,
            ..Site::default()
        }
    }

    #[test]
    fn what_the_allocator_holds_is_a_lower_bound() {
        let held =
            |growth, outstanding, objects| native(&[heap(growth)], outstanding, &[blocks(objects)]).held_at_least;
        assert_eq!(held(48 * MIB, MIB, 0), Some(47 * MIB));
        // A leak, with what the allocator adds to each block.
        assert_eq!(held(48 * MIB, 40 * MIB, 262_144), None);
        // Blocks that were mapped by themselves, or not touched.
        assert_eq!(held(MIB, 500 * MIB, 1), None);
        assert_eq!(held(0, 0, 0), None);
        assert_eq!(held(i64::MIN, i64::MAX, i64::MAX), None);
    }

    #[test]
    fn changes_are_by_the_minute() {
        let change = Change::new(10, 40, 30.0);
        assert_eq!((change.growth, change.per_minute), (30, 60));
        assert_eq!(Change::new(u64::MAX, 0, 0.0).per_minute, 0);
    }
}
