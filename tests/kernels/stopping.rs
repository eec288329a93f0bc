//! The daemon on a process that leaks: it names the leak, and ends in time with nothing left in the process.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use leaktrace_tests::daemon::Home;
use leaktrace_tests::process::{PATIENCE, Process};
use leaktrace_tests::scenario::unharmed;
use leaktrace_tests::{machine, programs};

/// The leaking function of `leaky_service`.
const LEAK: &str = "remember_request";
/// What a service manager waits at least.
const IN_TIME: Duration = Duration::from_secs(5);

#[test]
fn a_leak_is_named_and_the_daemon_ends_in_time() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut leaky = Process::spawn(programs::command("leaky_service")?.arg("256"))?;
    leaky.expect("ready")?;
    let pid = leaky.pid();
    let home = Home::new(
        "\n[trace]\nauto = false\n\n[budget]\ntarget_cpu = \"100%\"\nmachine_cpu = \"100%\"\nown_cpu = \"100%\"",
    )?;
    let mut daemon = home.start()?;
    daemon.until("it is known", PATIENCE, |daemon| Ok(daemon.state(pid)?.is_some()))?;
    daemon.trace(pid, 4096)?;
    daemon.until("the leak is named", PATIENCE, |daemon| {
        let top = daemon.get(&format!("/api/v1/processes/{pid}/top?limit=1"))?;
        Ok(top["rows"]
            .as_array()
            .context("no rows")?
            .first()
            .is_some_and(|row| row["function"] == LEAK))
    })?;
    let took = daemon.end()?;
    ensure!(took < machine::scaled(IN_TIME), "it took {took:?} to end");
    unharmed(&mut leaky)
}
