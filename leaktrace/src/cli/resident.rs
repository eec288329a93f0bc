//! Resident memory of what is recorded: the frame that a profile's bytes stand in.
//!
//! A profile explains what its probes saw. Invariant: what is said of resident memory is the kernel's number, whether the
//! profile explains it or not.

use crate::{model::ProcessKey, proc::footprint::Footprint, report::profile::Profile};

use super::quantity;

/// Resident memory of one process, at the beginning and as of the last look.
struct Course {
    key: ProcessKey,
    footprint: Footprint,
    first: u64,
    last: u64,
}

/// Resident memory of the recorded processes.
pub struct Frame(Vec<Course>);

impl Frame {
    /// Begins. A process whose memory cannot be read is left out.
    pub fn start(processes: impl Iterator<Item = ProcessKey>) -> Self {
        let courses = processes.filter_map(|key| {
            let mut footprint = Footprint::open(key.pid).ok()?;
            footprint.belongs_to(key);
            let first = footprint.resident().ok()?.rss;
            Some(Course {
                key,
                footprint,
                first,
                last: first,
            })
        });
        Self(courses.collect())
    }

    /// Reads it again. A process that has ended keeps what it had.
    pub fn update(&mut self) {
        for course in &mut self.0 {
            if let Ok(resident) = course.footprint.resident()
                && resident.rss > 0
            {
                course.last = resident.rss;
            }
        }
    }

    /// What became of it beside what the profile has, in a line; of one process, or of all.
    pub fn remark(&self, only: Option<u32>, profile: &Profile) -> Option<String> {
        let chosen = || {
            let courses = self.0.iter();
            courses.filter(|course| only.is_none_or(|pid| pid == course.key.pid))
        };
        chosen().next()?;
        let first: u64 = chosen().map(|course| course.first).sum();
        let last: u64 = chosen().map(|course| course.last).sum();
        Some(remark(first, last, outstanding(profile)))
    }
}

fn remark(first: u64, last: u64, outstanding: u64) -> String {
    let change = if last < first {
        format!("-{}", quantity::bytes(first - last))
    } else {
        format!("+{}", quantity::bytes(last - first))
    };
    format!(
        "Resident: {change} ({} to {}); {} in use in this profile",
        quantity::bytes(first),
        quantity::bytes(last),
        quantity::bytes(outstanding)
    )
}

fn total(profile: &Profile, kind: &str) -> u64 {
    let Some(position) = profile
        .sample_types
        .iter()
        .position(|value| value.kind.as_str() == kind)
    else {
        return 0;
    };
    let values = profile.samples.iter().map(|sample| sample.values[position]);
    values.fold(0i64, i64::saturating_add).max(0).unsigned_abs()
}

fn outstanding(profile: &Profile) -> u64 {
    total(profile, "inuse_space")
}

/// What an empty table means; `None` where it is not empty.
pub fn nothing_outstanding(profile: &Profile) -> Option<String> {
    if total(profile, "inuse_objects") > 0 || outstanding(profile) > 0 {
        return None;
    }
    Some(match total(profile, "alloc_objects") {
        0 => "Nothing was allocated while this was recorded".to_owned(),
        1 => "1 allocation was recorded, and it was freed".to_owned(),
        count => format!("{count} allocations were recorded, and all of them were freed"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::ProfileBuilder;

    #[test]
    fn growth_and_its_contrary() {
        insta::assert_snapshot!(remark(12 << 20, 100 << 20, 300 << 10), @"Resident: +88.0 MiB (12.0 MiB to 100 MiB); 300 KiB in use in this profile");
        insta::assert_snapshot!(remark(3 << 20, 1 << 20, 0), @"Resident: -2.00 MiB (3.00 MiB to 1.00 MiB); 0 B in use in this profile");
    }

    #[test]
    fn an_empty_table_is_explained() {
        let with = |values: &[i64; 4]| {
            let mut builder = ProfileBuilder::heap();
            let location = builder.location(None, 16, &[]);
            builder.sample(vec![location], values, Vec::new(), Vec::new());
            nothing_outstanding(&builder.finish())
        };
        assert_eq!(with(&[3, 300, 1, 100]), None);
        insta::assert_snapshot!(with(&[1030, 300, 0, 0]).unwrap_or_default(), @"1030 allocations were recorded, and all of them were freed");
        let empty = ProfileBuilder::heap().finish();
        insta::assert_snapshot!(nothing_outstanding(&empty).unwrap_or_default(), @"Nothing was allocated while this was recorded");
    }

    #[test]
    fn this_process_has_resident_memory() {
        let key = crate::proc::identity::read_key(std::process::id()).expect("this process is there");
        let mut frame = Frame::start([key].into_iter());
        frame.update();
        let empty = ProfileBuilder::heap().finish();
        assert!(
            frame
                .remark(None, &empty)
                .is_some_and(|remark| remark.starts_with("Resident: "))
        );
        assert_eq!(frame.remark(Some(1), &empty), None);
    }
}
