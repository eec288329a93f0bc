//! Where memory was allocated, as the first frame of the program's own code, with its callers.
//!
//! Frames of the C library, of the language's and of allocators are passed by; where nothing else is there the innermost
//! frame stands. Pure: from a profile to sites.

use std::collections::HashMap;

use serde::Serialize;

use crate::{
    model::HeapKind,
    report::{
        name::base,
        profile::{Profile, Sample},
        prune::prune,
        sites::{Place, own, places},
    },
};

/// Frames of a stack that are looked at.
const MAX_FRAMES: usize = 64;

/// Code that allocated.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Site {
    /// What the bytes are: `native` (allocated and not freed), `go` (growth of Go's heap) or `resident` (memory that was
    /// touched for the first time and is still there).
    pub heap: String,
    /// Function.
    pub function: String,
    /// Source file; empty when unknown.
    pub file: String,
    /// Line in it; 0 when unknown.
    pub line: i64,
    /// Name of the program or library; empty when unknown.
    pub module: String,
    /// Functions that called it, nearest first.
    pub callers: Vec<String>,
    /// Bytes.
    pub bytes: i64,
    /// Blocks, or pages; 0 where they are not counted.
    pub objects: i64,
    /// Bytes a minute.
    pub per_minute: i64,
}

/// A frame at the kernel's page for probes, which is the last of the address space: a page was touched inside of an
/// allocation function whose return is probed, and its callers are known by that probe alone.
const IN_PROBED_CALL: &str = "[unknown]+0x7fffffffdfff";
/// What such a stack is shown as.
pub const INSIDE: &str = "[inside an allocation function: see native]";

/// The program's own frame of a stack, and what called it.
fn culprit(profile: &Profile, sample: &Sample) -> (Place, Vec<String>) {
    let stack: Vec<Place> = profile
        .stack(sample)
        .flat_map(|location| places(profile, location))
        .take(MAX_FRAMES)
        .collect();
    if stack.iter().any(|place| place.function == IN_PROBED_CALL) {
        let inside = Place {
            function: INSIDE.to_owned(),
            ..Place::default()
        };
        return (inside, Vec::new());
    }
    own(stack.iter()).map_or_else(Default::default, |(place, callers)| (place.clone(), callers))
}

/// Sites of a profile's samples of this kind or of none, those with the most bytes first, and the bytes of all of them.
pub fn sites(profile: &Profile, kind: HeapKind, seconds: f64) -> (Vec<Site>, i64) {
    let mut profile = profile.clone();
    // With an expression that is none all frames stay.
    let _ = prune(&mut profile);
    let position = |kind| profile.sample_types.iter().position(|value| value.kind == kind);
    let (Some(space), Some(objects)) = (position("inuse_space"), position("inuse_objects")) else {
        return (Vec::new(), 0);
    };
    let mut sums: HashMap<(Place, Vec<String>), (i64, i64)> = HashMap::new();
    let mut total = 0i64;
    for sample in &profile.samples {
        let is_labelled = sample.labels.iter().any(|label| label.key == HeapKind::LABEL);
        if is_labelled && sample.heap() != Some(kind) || sample.values[space] == 0 {
            continue;
        }
        total = total.saturating_add(sample.values[space]);
        let sum = sums.entry(culprit(&profile, sample)).or_default();
        sum.0 = sum.0.saturating_add(sample.values[space]);
        sum.1 = sum.1.saturating_add(sample.values[objects]);
    }
    let mut sites: Vec<Site> = sums
        .into_iter()
        .filter(|(_, (bytes, _))| *bytes > 0)
        .map(|((place, callers), (bytes, objects))| Site {
            heap: kind.name().to_owned(),
            function: place.function,
            file: place.file,
            line: place.line,
            module: base(&place.module).to_owned(),
            callers,
            bytes,
            objects,
            per_minute: super::answer::per_minute(bytes, seconds),
        })
        .collect();
    sites.sort_by(|a, b| {
        let key = |site: &Site| {
            (
                std::cmp::Reverse(site.bytes),
                site.function.clone(),
                site.line,
                site.callers.clone(),
            )
        };
        key(a).cmp(&key(b))
    });
    (sites, total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{FrameLine, Mapping, ProfileBuilder, TextLabel};

    #[test]
    fn the_programs_own_frame_is_the_site() {
        let mut builder = ProfileBuilder::heap();
        let mapping = |builder: &mut ProfileBuilder, file: &str, start| {
            builder.mapping(Mapping {
                file: file.into(),
                start,
                ..Mapping::default()
            })
        };
        let libc = mapping(&mut builder, "/lib/libc.so.6", 1);
        let program = mapping(&mut builder, "/bin/app", 2);
        let line = |function, line| FrameLine {
            function,
            file: "/src/app.c",
            line,
            ..FrameLine::default()
        };
        let memset = builder.location(Some(libc), 0x10, &[line("__memset_avx2", 0)]);
        let keep = builder.location(
            Some(program),
            0x20,
            &[line("std::vector::push_back", 1), line("keep", 12)],
        );
        let main = builder.location(Some(program), 0x30, &[line("main", 40)]);
        let label = |kind| vec![TextLabel::heap(kind)];
        builder.sample(
            vec![memset, keep, main],
            &[0, 0, 3, 300],
            label(HeapKind::Resident),
            Vec::new(),
        );
        builder.sample(vec![keep, main], &[0, 0, 1, 100], label(HeapKind::Resident), Vec::new());
        builder.sample(vec![keep, main], &[9, 900, 0, 0], label(HeapKind::Reserved), Vec::new());
        builder.sample(vec![memset], &[0, 0, 1, 50], label(HeapKind::Resident), Vec::new());
        let profile = builder.finish();
        let (found, total) = sites(&profile, HeapKind::Resident, 30.0);
        assert_eq!(total, 450);
        let shown: Vec<String> = found
            .iter()
            .map(|site| {
                format!(
                    "{} {}:{} {} {} {}",
                    site.function,
                    site.file,
                    site.line,
                    site.callers.join("<"),
                    site.bytes,
                    site.per_minute
                )
            })
            .collect();
        assert_eq!(
            shown,
            ["keep /src/app.c:12 main 400 800", "__memset_avx2 /src/app.c:0  50 100"]
        );
    }
}
