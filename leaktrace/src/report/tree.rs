//! The tree view: each function between its callers (above) and its callees (below), like `go tool pprof -tree`.

use std::fmt::Write as _;

use super::graph::{Edge, Graph};
use super::name::{fit, printable};
use super::profile::Profile;
use super::table::{TableOptions, Values, header, summary};
use super::unit::percentage;

const SEPARATOR: &str = "----------------------------------------------------------+-------------\n";
const LEGEND: &str = "      flat  flat%   sum%        cum   cum%   calls calls% + context\n";

/// The whole view with its header.
pub fn tree(profile: &Profile, options: &TableOptions) -> String {
    let graph = Graph::new(profile, &options.graph);
    let values = Values::new(profile, options.graph.sample_type, &graph);
    let shorten = |name: &str, used: usize| match options.width {
        Some(width) => fit(&printable(name), width.saturating_sub(used).max(20)).into_owned(),
        None => printable(name).into_owned(),
    };
    let call = |edge: &Edge, cumulative: i64, other: usize| {
        let numbers = format!(
            "{:>50} {} |   ",
            values.show(edge.weight),
            percentage(edge.weight, cumulative)
        );
        let inline = if edge.inline { " (inline)" } else { "" };
        let name = shorten(&graph.nodes[other].name, numbers.len() + inline.len());
        format!("{numbers}{name}{inline}\n")
    };

    let mut text = header(profile, options.graph.sample_type);
    text += &summary(&graph, &values, &options.graph);
    text += SEPARATOR;
    text += LEGEND;
    let mut sum = 0i64;
    for node in &graph.nodes {
        text += SEPARATOR;
        for edge in node.callers.iter().map(|edge| &graph.edges[*edge]) {
            text += &call(edge, node.cumulative, edge.caller);
        }
        sum = sum.saturating_add(node.flat);
        let numbers = format!(
            "{:>10} {} {} {:>10} {}                | ",
            values.show(node.flat),
            percentage(node.flat, graph.total),
            percentage(sum, graph.total),
            values.show(node.cumulative),
            percentage(node.cumulative, graph.total),
        );
        let _ = writeln!(text, "{numbers}{}", shorten(&node.name, numbers.len()));
        for edge in node.callees.iter().map(|edge| &graph.edges[*edge]) {
            text += &call(edge, node.cumulative, edge.callee);
        }
    }
    if !graph.nodes.is_empty() {
        text += SEPARATOR;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::graph::GraphOptions;
    use super::super::table::tests::sample_profile;
    use super::*;

    #[test]
    fn callers_above_callees_below() {
        let options = TableOptions {
            graph: GraphOptions::trimmed(3),
            width: None,
        };
        insta::assert_snapshot!(tree(&sample_profile(), &options), @r"
        File: app
        Type: inuse_space
        Time: 2023-11-14T22:13:20Z
        Duration: 2.50s
        Showing nodes accounting for 2560kB, 100% of 2560.10kB total
        Dropped 1 node (cum <= 12.80kB)
        ----------------------------------------------------------+-------------
              flat  flat%   sum%        cum   cum%   calls calls% + context
        ----------------------------------------------------------+-------------
                                                    2048kB   100% |   recurse (inline)
            2048kB 80.00% 80.00%     2048kB 80.00%                | leak
        ----------------------------------------------------------+-------------
                                                     512kB   100% |   main
             512kB 20.00%   100%      512kB 20.00%                | keep
        ----------------------------------------------------------+-------------
                 0     0%   100%  2560.10kB   100%                | main
                                                    2048kB 80.00% |   recurse
                                                     512kB 20.00% |   keep
        ----------------------------------------------------------+-------------
                                                    2048kB   100% |   main
                 0     0%   100%     2048kB 80.00%                | recurse
                                                    2048kB   100% |   leak (inline)
        ----------------------------------------------------------+-------------
        ");
    }
}
