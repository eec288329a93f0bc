//! Running other programs, with errors that can be acted on.
//!
//! Invariant: a failure names the whole command line, as it could be pasted into a shell.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The command line as a shell would take it, environment included.
pub fn shown(command: &Command) -> String {
    let quoted = |text: &str| {
        let plain = !text.is_empty()
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_./=:+,@%".contains(c));
        if plain {
            text.to_owned()
        } else {
            format!("'{}'", text.replace('\'', r"'\''").replace('\x1f', " "))
        }
    };
    let environment = command.get_envs().filter_map(|(key, value)| {
        Some(format!(
            "{}={}",
            key.to_string_lossy(),
            quoted(&value?.to_string_lossy())
        ))
    });
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    environment
        .chain(words.map(|word| quoted(&word.to_string_lossy())))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs a command with this process's own streams; an error if it does not succeed.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("failed to start `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", shown(command));
    }
    Ok(())
}

/// Standard output of a command, or `None` when it cannot be started or fails. For questions, not for work.
pub fn answer(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A cargo of the toolchain that runs this program, without the settings that cargo gave to this program.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(crate::workspace::root());
    for (key, _) in std::env::vars_os() {
        let name = key.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&key);
        }
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_command_can_be_pasted() {
        let mut command = Command::new("sh");
        command.env("NAME", "a b").args(["-c", "echo 'x'", ""]);
        assert_eq!(shown(&command), r"NAME='a b' sh -c 'echo '\''x'\''' ''");
    }

    #[test]
    fn a_failing_command_is_named() {
        let error = run(Command::new("false").arg("--flag")).expect_err("false fails");
        assert!(error.to_string().contains("`false --flag` failed"), "{error}");
    }

    #[test]
    fn no_answer_comes_from_a_command_that_is_not_there() {
        assert_eq!(answer(&mut Command::new("/nonexistent/program")), None);
        assert_eq!(answer(Command::new("echo").arg("yes")).as_deref(), Some("yes"));
    }
}
