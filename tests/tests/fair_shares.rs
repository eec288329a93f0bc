//! What the kernel side has room for is shared: who takes all is cut first, and an innocent process is traced wholly.

use anyhow::{Result, ensure};
use leaktrace_tests::process::{PATIENCE, Process};
use leaktrace_tests::recording::Recording;
use leaktrace_tests::scenario::{amount, unharmed};
use leaktrace_tests::user::without_capabilities;
use leaktrace_tests::{machine, programs};

/// Four processes of another user, which together have more executable mappings than there is room for.
fn greedy() -> Result<Vec<Process>> {
    let folder = tempfile::tempdir()?;
    let program = folder.path().join("many_mappings");
    // Where others may read it.
    std::fs::copy(programs::path("many_mappings")?, &program)?;
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), open)?;
    let mut processes = Vec::new();
    for _ in 0..4 {
        let mut command = without_capabilities();
        command.arg(&program).arg("/usr/bin/true").arg("4200");
        processes.push(Process::ready(&mut command)?);
    }
    Ok(processes)
}

#[test]
fn an_innocent_process_beside_greedy_ones_has_all_its_stacks() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let greedy = greedy()?;
    let mut innocent = Process::ready(programs::command("malloc_family")?.arg("malloc"))?;
    let pids: Vec<String> = greedy[1..].iter().map(|process| process.pid().to_string()).collect();
    let innocent_pid = innocent.pid().to_string();
    let mut arguments: Vec<&str> = pids.iter().flat_map(|pid| ["-p", pid]).collect();
    arguments.extend(["-p", &innocent_pid]);
    let recording = Recording::attach(greedy[0].pid(), &arguments)?;
    let truth = innocent.work()?;
    let recorded = recording.stop()?;
    let profile = &recorded.profile;
    let leaked = amount(truth.leaked_objects, truth.leaked_bytes);
    assert_eq!(
        profile.outstanding_through(&truth.function),
        leaked,
        "{}",
        profile.shown()
    );
    let all = amount(truth.objects(), truth.bytes());
    assert_eq!(profile.outstanding_through("main"), all, "{}", profile.shown());
    let told = |pid: &str| {
        let begin = format!("code of pid {pid}: ");
        profile.comments.iter().any(|comment| comment.starts_with(&begin))
    };
    ensure!(pids.iter().all(|pid| told(pid)), "{:#?}", profile.comments);
    ensure!(!told(&innocent_pid), "{:#?}", profile.comments);
    ensure!(profile.loss("code_left_out") > 4 * 100, "{}", profile.shown());
    unharmed(&mut innocent)?;
    innocent.exit()?;
    end(greedy)
}

fn end(greedy: Vec<Process>) -> Result<()> {
    for mut process in greedy {
        process.close_input();
        process.wait(PATIENCE)?;
    }
    Ok(())
}
