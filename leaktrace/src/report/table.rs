//! The top table: flat, flat%, sum%, cum, cum%, name.
//!
//! The same columns and digits as `go tool pprof -top`. Text only; the numbers come from [`Graph`].

use std::fmt::Write as _;

use super::graph::{Graph, GraphOptions, Inlining};
use super::name::{base, fit, printable};
use super::profile::Profile;
use super::unit::{Scale, common, label, percentage};

/// What to show, and how wide.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TableOptions {
    /// Which nodes, and in which order.
    pub graph: GraphOptions,
    /// Columns of the terminal; `None` shows names in full.
    pub width: Option<usize>,
}

/// Values of one table, all in the unit that suits its smallest and its largest.
#[derive(Clone, Debug)]
pub(super) struct Values<'p> {
    unit: &'p str,
    scale: Scale,
}

impl<'p> Values<'p> {
    pub(super) fn new(profile: &'p Profile, sample_type: usize, graph: &Graph) -> Self {
        let smallest = graph
            .nodes
            .iter()
            .map(|node| if node.flat == 0 { node.cumulative } else { node.flat }.saturating_abs())
            .filter(|value| *value > 0)
            .min()
            .unwrap_or(graph.total);
        let unit = profile
            .sample_types
            .get(sample_type)
            .map_or("", |value_type| value_type.unit.as_str());
        Self {
            unit,
            scale: common(smallest, graph.total, unit),
        }
    }

    pub(super) fn show(&self, value: i64) -> String {
        label(value, self.unit, &self.scale)
    }
}

/// The whole top table with its header.
pub fn table(profile: &Profile, options: &TableOptions) -> String {
    let graph = Graph::new(profile, &options.graph);
    let values = Values::new(profile, options.graph.sample_type, &graph);
    let mut text = header(profile, options.graph.sample_type);
    text += &summary(&graph, &values, &options.graph);
    text += "      flat  flat%   sum%        cum   cum%\n";
    let mut sum = 0i64;
    for node in &graph.nodes {
        sum = sum.saturating_add(node.flat);
        let inlined = match graph.inlining(node) {
            Inlining::None => "",
            Inlining::Partial => " (partial-inline)",
            Inlining::Full => " (inline)",
        };
        let numbers = format!(
            "{:>10} {} {} {:>10} {}  ",
            values.show(node.flat),
            percentage(node.flat, graph.total),
            percentage(sum, graph.total),
            values.show(node.cumulative),
            percentage(node.cumulative, graph.total),
        );
        let name = printable(&node.name);
        let name = match options.width {
            Some(width) => fit(&name, width.saturating_sub(numbers.len() + inlined.len()).max(20)),
            None => name,
        };
        let _ = writeln!(text, "{numbers}{name}{inlined}");
    }
    text
}

/// What is shown: file, build ID, remarks, type, time.
pub(super) fn header(profile: &Profile, sample_type: usize) -> String {
    let mut text = String::new();
    if let Some(mapping) = profile.mappings.first() {
        if !mapping.file.is_empty() {
            let _ = writeln!(text, "File: {}", printable(base(&mapping.file)));
        }
        if !mapping.build_id.is_empty() {
            let _ = writeln!(text, "Build ID: {}", printable(&mapping.build_id));
        }
    }
    for comment in profile.comments.iter().filter(|comment| !comment.starts_with('#')) {
        let _ = writeln!(text, "{}", printable(comment));
    }
    if let Some(value_type) = profile.sample_types.get(sample_type) {
        let _ = writeln!(text, "Type: {}", printable(&value_type.kind));
    }
    if profile.time_nanos > 0 {
        let since_epoch = std::time::Duration::from_nanos(profile.time_nanos.unsigned_abs());
        let time = humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + since_epoch);
        let _ = writeln!(text, "Time: {time}");
    }
    if profile.duration_nanos > 0 {
        let _ = writeln!(
            text,
            "Duration: {}",
            label(profile.duration_nanos, "nanoseconds", &Scale::Auto)
        );
    }
    text
}

/// How much of the total the nodes stand for, and what is left out.
pub(super) fn summary(graph: &Graph, values: &Values<'_>, options: &GraphOptions) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "Showing nodes accounting for {}, {} of {} total",
        values.show(graph.flat_sum()),
        percentage(graph.flat_sum(), graph.total).trim(),
        values.show(graph.total)
    );
    if graph.total != 0 && graph.dropped > 0 {
        let plural = if graph.dropped == 1 { "" } else { "s" };
        let _ = writeln!(
            text,
            "Dropped {} node{plural} (cum <= {})",
            graph.dropped,
            values.show(graph.cutoff)
        );
    }
    if options.top > 0 && graph.nodes.len() < graph.before_top {
        let _ = writeln!(
            text,
            "Showing top {} nodes out of {}",
            graph.nodes.len(),
            graph.before_top
        );
    }
    text
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::report::{FrameLine, Mapping, ProfileBuilder};

    /// `main → recurse → recurse → leak` (leak inlined), `main → keep`, and code of a library without names.
    pub(crate) fn sample_profile() -> Profile {
        let mut builder = ProfileBuilder::heap();
        let mapping = builder.mapping(Mapping {
            file: "/bin/app".into(),
            ..Mapping::default()
        });
        let library = builder.mapping(Mapping {
            file: "/lib/libx.so".into(),
            start: 1,
            ..Mapping::default()
        });
        let frame = |function, line| FrameLine {
            function,
            file: "/src/app.c",
            line,
            ..FrameLine::default()
        };
        let main = builder.location(Some(mapping), 0x10, &[frame("main", 40)]);
        let outer = builder.location(Some(mapping), 0x20, &[frame("recurse", 20)]);
        let inner = builder.location(Some(mapping), 0x30, &[frame("leak", 10), frame("recurse", 21)]);
        let keep = builder.location(Some(mapping), 0x40, &[frame("keep", 30)]);
        let hidden = builder.location(Some(library), 0x50, &[]);
        builder.sample(
            vec![inner, outer, main],
            &[3, 3 << 20, 2, 2 << 20],
            Vec::new(),
            Vec::new(),
        );
        builder.sample(vec![keep, main], &[1, 1 << 19, 1, 1 << 19], Vec::new(), Vec::new());
        builder.sample(vec![hidden, main], &[1, 100, 1, 100], Vec::new(), Vec::new());
        let profile = builder.profile_mut();
        profile.time_nanos = 1_700_000_000_000_000_000;
        profile.duration_nanos = 2_500_000_000;
        builder.finish()
    }

    #[test]
    fn by_flat_weight() {
        let options = TableOptions {
            graph: GraphOptions::trimmed(3),
            width: None,
        };
        insta::assert_snapshot!(table(&sample_profile(), &options), @r"
        File: app
        Type: inuse_space
        Time: 2023-11-14T22:13:20Z
        Duration: 2.50s
        Showing nodes accounting for 2560kB, 100% of 2560.10kB total
        Dropped 1 node (cum <= 12.80kB)
              flat  flat%   sum%        cum   cum%
            2048kB 80.00% 80.00%     2048kB 80.00%  leak (inline)
             512kB 20.00%   100%      512kB 20.00%  keep
                 0     0%   100%  2560.10kB   100%  main
                 0     0%   100%     2048kB 80.00%  recurse
        ");
    }

    #[test]
    fn by_cumulative_weight_all_nodes_counts() {
        let graph = GraphOptions {
            cumulative: true,
            ..GraphOptions::all(2)
        };
        insta::assert_snapshot!(table(&sample_profile(), &TableOptions { graph, width: None }), @r"
        File: app
        Type: inuse_objects
        Time: 2023-11-14T22:13:20Z
        Duration: 2.50s
        Showing nodes accounting for 4, 100% of 4 total
              flat  flat%   sum%        cum   cum%
                 0     0%     0%          4   100%  main
                 2 50.00% 50.00%          2 50.00%  leak (inline)
                 0     0% 50.00%          2 50.00%  recurse
                 1 25.00% 75.00%          1 25.00%  [libx.so]
                 1 25.00%   100%          1 25.00%  keep
        ");
    }

    #[test]
    fn top_nodes_in_a_narrow_terminal() {
        let graph = GraphOptions {
            top: 1,
            ..GraphOptions::all(3)
        };
        insta::assert_snapshot!(table(&sample_profile(), &TableOptions { graph, width: Some(60) }), @r"
        File: app
        Type: inuse_space
        Time: 2023-11-14T22:13:20Z
        Duration: 2.50s
        Showing nodes accounting for 2MB, 80.00% of 2.50MB total
        Showing top 1 nodes out of 5
              flat  flat%   sum%        cum   cum%
               2MB 80.00% 80.00%        2MB 80.00%  leak
        ");
    }
}
