//! Was anything lost? A recording with exact numbers must say "no" with right.
//!
//! Invariant: a profile that does not say how many calls were nested is none that lost nothing.

use anyhow::{Context as _, Result, ensure};

use crate::profile::Profile;

/// Checks that a recording lost nothing and took no call for a nested one.
///
/// A call is nested when it comes from inside another that is not over: of the programs in C whose allocator is libc's
/// there are none, so that each one is a call whose return was missed.
///
/// # Errors
/// When something was lost, with all that was.
pub fn none(profile: &Profile) -> Result<()> {
    let mut lost: Vec<String> = profile
        .losses
        .iter()
        .filter(|loss| loss.count > 0)
        .map(|loss| format!("{} {}", loss.count, loss.name))
        .collect();
    let nested = nested(profile)?;
    if nested > 0 {
        lost.push(format!("{nested} nested calls"));
    }
    ensure!(lost.is_empty(), "lost: {}\n{}", lost.join(", "), profile.shown());
    Ok(())
}

/// The number of nested calls, which is no loss by itself and stands in the comments.
fn nested(profile: &Profile) -> Result<u64> {
    let told = profile.comments.iter().find_map(|comment| {
        let (_, rest) = comment.split_once("nested calls: ")?;
        rest.split(';').next()?.trim().parse().ok()
    });
    told.with_context(|| format!("nested calls are not told: {:?}", profile.comments))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(losses: &str, comment: &str) -> Profile {
        let text = format!(
            r#"{{"version": 1, "time_nanos": 0, "duration_nanos": 0, "comm": "", "pid": 1, "mode": "exact",
                "sample_types": [], "totals": {{}}, "samples": [], "losses": {losses}, "comments": ["{comment}"]}}"#
        );
        serde_json::from_str(&text).expect("a profile")
    }

    const CLEAN: &str = "events: 7; nested calls: 0; failed allocations: 0";

    #[test]
    fn nothing_is_lost_where_nothing_is_told() {
        assert!(none(&profile("[]", CLEAN)).is_ok());
        let zero = r#"[{"name": "missed_free", "count": 0, "meaning": ""}]"#;
        assert!(none(&profile(zero, CLEAN)).is_ok());
    }

    #[test]
    fn a_loss_is_found() {
        let one = r#"[{"name": "missed_free", "count": 1, "meaning": ""}]"#;
        let error = none(&profile(one, CLEAN)).expect_err("a loss");
        assert!(error.to_string().contains("1 missed_free"), "{error}");
    }

    #[test]
    fn a_nested_call_is_found_and_so_is_silence() {
        assert!(none(&profile("[]", "events: 7; nested calls: 3; failed allocations: 0")).is_err());
        assert!(none(&profile("[]", "events: 7")).is_err());
    }
}
