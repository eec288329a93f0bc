//! A profile as table and tree, in the words of the API.

use std::collections::HashMap;

use super::super::source::{Heap, MAX_ROWS, Query, SourceError};
use crate::{
    daemon::api,
    model::HeapKind,
    report::{
        graph::{Graph, GraphOptions},
        profile::{Profile, Sample},
        prune::prune,
    },
};

/// Most nodes of a tree; stacks beyond are counted with their callers.
const MAX_NODES: usize = 50_000;

/// Leaves out what the query does not ask for. Returns the sample type.
fn reduce(profile: &mut Profile, query: &Query) -> Result<usize, SourceError> {
    let failed = |error: &dyn std::fmt::Display| SourceError::Nothing(error.to_string());
    let of_go = |sample: &Sample| sample.heap().is_some_and(HeapKind::is_managed);
    match query.heap {
        Heap::Both => {}
        Heap::Native => profile.samples.retain(|sample| !of_go(sample)),
        Heap::Go => profile.samples.retain(of_go),
    }
    let sample_type = profile
        .sample_type(Some(query.sample_type()))
        .map_err(|error| failed(&error))?;
    prune(profile).map_err(|error| failed(&error))?;
    Ok(sample_type)
}

fn remarks(profile: &Profile) -> Vec<String> {
    let losses = profile.metadata.losses.iter();
    let mut remarks: Vec<String> = losses
        .map(|loss| format!("{} {}: {}", loss.count, loss.name, loss.meaning))
        .collect();
    remarks.extend(profile.comments.iter().cloned());
    remarks
}

/// The table.
pub fn top(mut profile: Profile, query: &Query) -> Result<api::Top, SourceError> {
    let sample_type = reduce(&mut profile, query)?;
    let options = GraphOptions {
        cumulative: query.cumulative,
        ..GraphOptions::all(sample_type)
    };
    let graph = Graph::new(&profile, &options);
    let words = query.filter.to_lowercase();
    let rows: Vec<api::TopRow> = graph
        .nodes
        .iter()
        .filter(|node| (node.flat, node.cumulative) != (0, 0))
        .filter(|node| node.name.to_lowercase().contains(&words))
        .map(|node| api::TopRow {
            frame: api::Frame {
                function: node.name.clone(),
                ..api::Frame::default()
            },
            flat: node.flat,
            cum: node.cumulative,
        })
        .collect();
    Ok(api::Top {
        sample_type: query.sample_type().to_owned(),
        total: graph.total,
        rows_total: rows.len(),
        rows: rows.into_iter().take(MAX_ROWS).collect(),
        comments: remarks(&profile),
    })
}

/// The tree.
pub fn stacks(mut profile: Profile, query: &Query) -> Result<api::Stacks, SourceError> {
    let sample_type = reduce(&mut profile, query)?;
    let mut stacks = api::Stacks {
        sample_type: query.sample_type().to_owned(),
        frames: Vec::new(),
        nodes: vec![api::StackNode {
            parent: 0,
            frame: u32::MAX,
            own: 0,
            total: 0,
        }],
        folded: 0,
        comments: remarks(&profile),
    };
    let mut frames: HashMap<String, u32> = HashMap::new();
    let mut children: HashMap<(u32, u32), u32> = HashMap::new();
    // The heaviest first, so that what does not fit is small.
    let mut samples: Vec<&Sample> = profile.samples.iter().collect();
    samples.sort_by_key(|sample| std::cmp::Reverse(sample.values[sample_type].saturating_abs()));
    for sample in samples {
        let value = sample.values[sample_type];
        if value == 0 {
            continue;
        }
        let mut at = 0u32;
        let add = |total: &mut i64| *total = total.saturating_add(value);
        add(&mut stacks.nodes[0].total);
        let outermost_first = profile
            .stack(sample)
            .rev()
            .flat_map(|location| profile.names(location).rev());
        for name in outermost_first {
            let next = frames.len() as u32;
            let frame = *frames.entry(name.into_owned()).or_insert_with_key(|name| {
                stacks.frames.push(api::Frame {
                    function: name.clone(),
                    ..api::Frame::default()
                });
                next
            });
            let node = match children.get(&(at, frame)) {
                Some(node) => *node,
                None if stacks.nodes.len() >= MAX_NODES => {
                    stacks.folded += 1;
                    break;
                }
                None => {
                    let node = stacks.nodes.len() as u32;
                    stacks.nodes.push(api::StackNode {
                        parent: at,
                        frame,
                        own: 0,
                        total: 0,
                    });
                    children.insert((at, frame), node);
                    node
                }
            };
            at = node;
            add(&mut stacks.nodes[at as usize].total);
        }
        add(&mut stacks.nodes[at as usize].own);
    }
    Ok(stacks)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::report::{
        builder::{FrameLine, ProfileBuilder},
        profile::TextLabel,
    };

    fn profile() -> Profile {
        let mut builder = ProfileBuilder::heap();
        let mut location = |address: u64, name: &str| {
            let frame = FrameLine {
                function: name,
                system_name: name,
                ..FrameLine::default()
            };
            builder.location(None, address, &[frame])
        };
        let (main, leak, put) = (location(1, "main"), location(2, "leak"), location(3, "put"));
        let label = |kind| vec![TextLabel::heap(kind)];
        builder.sample(vec![leak, main], &[2, 200, 1, 100], label(HeapKind::Native), Vec::new());
        builder.sample(vec![put, main], &[1, 60, 1, 50], label(HeapKind::Go), Vec::new());
        builder.finish()
    }

    fn query(heap: Heap) -> Query {
        Query {
            heap,
            ..Query::default()
        }
    }

    #[test]
    fn table_by_heap() {
        let show = |query: &Query| {
            let top = top(profile(), query).unwrap();
            let rows = top
                .rows
                .iter()
                .map(|row| format!("{} {} {}", row.frame.function, row.flat, row.cum));
            (top.total, rows.collect::<Vec<_>>())
        };
        assert_eq!(
            show(&query(Heap::Both)),
            (
                150,
                vec![
                    "leak 100 100".to_owned(),
                    "put 50 50".to_owned(),
                    "main 0 150".to_owned()
                ]
            )
        );
        assert_eq!(
            show(&query(Heap::Go)),
            (50, vec!["put 50 50".to_owned(), "main 0 50".to_owned()])
        );
        let allocated = Query {
            allocated: true,
            cumulative: true,
            filter: "LEA".to_owned(),
            ..query(Heap::Native)
        };
        assert_eq!(show(&allocated), (200, vec!["leak 200 200".to_owned()]));
    }

    #[test]
    fn tree_with_parents_first() {
        let stacks = stacks(profile(), &query(Heap::Both)).unwrap();
        let names: Vec<&str> = stacks.frames.iter().map(|frame| frame.function.as_str()).collect();
        assert_eq!(names, ["main", "leak", "put"]);
        let nodes: Vec<_> = stacks
            .nodes
            .iter()
            .map(|node| (node.parent, node.own, node.total))
            .collect();
        assert_eq!(nodes, [(0, 0, 150), (0, 0, 150), (1, 100, 100), (1, 50, 50)]);
    }
}
