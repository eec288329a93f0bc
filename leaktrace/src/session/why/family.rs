//! The children of a process, and how their memory goes: a master is often clean while a worker grows.
//!
//! Looked at from time to time, so children that come and go between two looks are not seen. Invariant: bounded by
//! [`MAX_MEMBERS`] processes and a course of [`MAX_POINTS`] points for each.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::course::{self, Point, Verdict};
use crate::{
    model::ProcessKey,
    proc::{footprint::Footprint, identity, read_bounded},
};

/// Descendants that are followed.
const MAX_MEMBERS: usize = 1024;
/// Threads of each that are asked for their children.
const MAX_THREADS: usize = 512;
/// Points of each course.
const MAX_POINTS: usize = 256;

/// A descendant.
#[derive(Debug)]
pub struct Member {
    /// Who it is.
    pub key: ProcessKey,
    /// Its name.
    pub comm: String,
    /// How its resident memory went.
    pub course: Vec<Point>,
    footprint: Option<Footprint>,
}

impl Member {
    /// Bytes by which it grew.
    pub fn growth(&self) -> i64 {
        match (self.course.first(), self.course.last()) {
            (Some(first), Some(last)) => {
                let bytes = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
                bytes(last.1).saturating_sub(bytes(first.1))
            }
            _ => 0,
        }
    }

    /// How it grew.
    pub fn verdict(&self) -> Verdict {
        course::judge(&self.course)
    }

    fn look(&mut self, at: f64) {
        let Some(footprint) = &mut self.footprint else {
            return;
        };
        match footprint.resident() {
            Ok(resident) if self.course.len() < MAX_POINTS => self.course.push((at, resident.rss)),
            Ok(resident) => {
                // Every second one goes.
                let mut keep = false;
                self.course.retain(|_| {
                    keep = !keep;
                    keep
                });
                self.course.push((at, resident.rss));
            }
            // It has ended; another one may have its pid.
            Err(_) => self.footprint = None,
        }
    }
}

/// All descendants of a process.
#[derive(Debug)]
pub struct Family {
    parent: u32,
    members: BTreeMap<ProcessKey, Member>,
}

impl Family {
    /// Of this process; nothing is looked at yet.
    pub fn new(parent: u32) -> Self {
        Self {
            parent,
            members: BTreeMap::new(),
        }
    }

    /// Looks at all of them; `at` is in seconds since the begin.
    pub fn look(&mut self, at: f64) {
        for pid in descendants(self.parent) {
            let Ok(stat) = identity::read_stat(pid) else { continue };
            if self.members.contains_key(&stat.key) || self.members.len() >= MAX_MEMBERS {
                continue;
            }
            let footprint = Footprint::open(pid).ok().map(|mut footprint| {
                footprint.belongs_to(stat.key);
                footprint
            });
            let member = Member {
                key: stat.key,
                comm: stat.comm,
                course: Vec::new(),
                footprint,
            };
            self.members.insert(stat.key, member);
        }
        for member in self.members.values_mut() {
            member.look(at);
        }
    }

    /// Those that were seen, the one that grew most first.
    pub fn by_growth(self) -> Vec<Member> {
        let mut members: Vec<Member> = self
            .members
            .into_values()
            .filter(|member| !member.course.is_empty())
            .collect();
        members.sort_by_key(|member| (std::cmp::Reverse(member.growth()), member.key.pid));
        members
    }
}

/// Children, their children, and so on, nearest first.
fn descendants(parent: u32) -> Vec<u32> {
    let mut known = BTreeSet::from([parent]);
    let mut waiting = VecDeque::from([parent]);
    let mut found = Vec::new();
    while let Some(pid) = waiting.pop_front() {
        let threads = identity::read_threads(pid).unwrap_or_default();
        for tid in threads.into_iter().take(MAX_THREADS) {
            let text = read_bounded(pid, &format!("task/{tid}/children"), 64 << 10).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            for child in text.split_ascii_whitespace().filter_map(|word| word.parse().ok()) {
                if found.len() >= MAX_MEMBERS {
                    return found;
                }
                if known.insert(child) {
                    found.push(child);
                    waiting.push_back(child);
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_seen_while_it_lives() {
        let mut child = std::process::Command::new("sleep")
            .arg("20")
            .spawn()
            .expect("there is sleep");
        let mut family = Family::new(std::process::id());
        family.look(0.0);
        family.look(1.0);
        child.kill().expect("it lives");
        child.wait().expect("it was started");
        family.look(2.0);
        let members = family.by_growth();
        let member = members
            .iter()
            .find(|member| member.key.pid == child.id())
            .expect("it was seen");
        assert!(member.course.len() >= 2 && member.course.last().is_some_and(|last| last.0 <= 1.0));
        assert_eq!(member.verdict(), Verdict::Unknown);
    }
}
