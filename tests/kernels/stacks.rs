//! Stacks of 30 frames, complete, without frame pointers.

use anyhow::Result;
use leaktrace_tests::scenario::{assert_exact, record_program};
use leaktrace_tests::{losses, machine};

#[test]
fn thirty_frames() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (truth, recorded) = record_program("deep", "direct")?;
    assert_exact(&truth, &recorded.profile);
    losses::none(&recorded.profile)?;
    let leaking: Vec<_> = recorded
        .profile
        .heap()
        .filter(|sample| sample.inuse().objects > 0)
        .collect();
    let [sample] = leaking[..] else {
        panic!("one place in the program is one stack:\n{}", recorded.profile.shown())
    };
    let names = sample.names();
    let chain: Vec<String> = (1..=30).map(|number| format!("frame_{number:02}")).collect();
    let begin = names.iter().position(|name| *name == chain[0]);
    let begin = begin.unwrap_or_else(|| panic!("no frame_01 in {names:?}"));
    assert_eq!(
        names.get(begin..begin + 30),
        Some(chain.iter().map(String::as_str).collect::<Vec<_>>().as_slice())
    );
    assert_eq!(names.get(begin + 30), Some(&"main"), "{names:?}");
    assert_eq!(
        names.last(),
        Some(&"_start"),
        "the walk did not reach the bottom: {names:?}"
    );
    Ok(())
}
