//! What a command works on: processes, by pid or by what an engineer calls them, or a command that is started.
//!
//! A name that several processes have is never decided by guessing: they are listed. A unit, a container and a control
//! group stand for all of their processes.

use std::{env, ffi::OsString, fmt::Write as _, fs, os::unix::fs::PermissionsExt as _};

use clap::Args;

use super::quantity;
use crate::{
    proc::{
        find::{Wanted, find},
        footprint::Footprint,
        identity::Identity,
        users::Users,
    },
    report::name::{fit, printable},
    session::recording::Target,
};

/// Most processes that an error lists.
const MAX_LISTED: usize = 20;
/// Columns of a command line in that list.
const COMMAND_WIDTH: usize = 60;

/// Arguments that name the target.
#[derive(Debug, Args)]
pub struct TargetArgs {
    /// Process by its program's name, a systemd unit or a container's id; a name that several have lists them.
    #[arg(value_name = "TARGET", required_unless_present_any = ["pids", "units", "cgroups", "command"])]
    names: Vec<String>,
    /// Process by its pid; may be repeated.
    #[arg(short, long = "pid", value_name = "PID", conflicts_with = "command")]
    pids: Vec<u32>,
    /// All processes of a systemd unit (those that it has now); may be repeated.
    #[arg(short, long = "unit", value_name = "UNIT", conflicts_with = "command")]
    units: Vec<String>,
    /// All processes of a control group and of those below it (those that it has now); may be repeated.
    #[arg(long = "cgroup", value_name = "PATH", conflicts_with = "command")]
    cgroups: Vec<String>,
    /// Command to start and trace from its first instruction.
    #[arg(last = true, value_name = "COMMAND", conflicts_with = "names")]
    command: Vec<OsString>,
}

/// Why nothing can be worked on.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Nothing is called that.
    #[error("no process, unit or container is called `{name}`{}", start_remedy(verb, name, *is_command))]
    NotFound {
        /// What was asked for.
        name: String,
        /// The command that asked.
        verb: &'static str,
        /// It can be run as a command.
        is_command: bool,
    },
    /// A unit or group has no process.
    #[error("no process is in {what} `{name}`")]
    Empty {
        /// Unit or group.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// Several are.
    #[error("{count} processes are called `{name}`; choose by pid (leaktrace {verb} -p PID):\n{list}")]
    Ambiguous {
        /// What was asked for.
        name: String,
        /// How many.
        count: usize,
        /// The command that asked.
        verb: &'static str,
        /// A line for each.
        list: String,
    },
    /// Several words without `--`.
    #[error(
        "`{words}` names no process: to start it as a command, put `--` before it (leaktrace {verb} -- {words}); for \
         several processes repeat -p"
    )]
    Words {
        /// What was written.
        words: String,
        /// The command that asked.
        verb: &'static str,
    },
}

fn start_remedy(verb: &str, name: &str, is_command: bool) -> String {
    if is_command {
        format!("; to start it: leaktrace {verb} -- {name}")
    } else {
        String::new()
    }
}

impl TargetArgs {
    /// Finds it; `verb` is the command's name, for what to do instead.
    ///
    /// # Errors
    /// When nothing is called so, or several processes are.
    pub fn resolve(&self, verb: &'static str) -> Result<Target, TargetError> {
        if !self.command.is_empty() {
            return Ok(Target::Command(self.command.clone()));
        }
        let mut pids = self.pids.clone();
        match self.names.as_slice() {
            [] => {}
            [name] => pids.extend(by_name(name, verb)?),
            words => {
                return Err(TargetError::Words {
                    words: printable(&words.join(" ")).into_owned(),
                    verb,
                });
            }
        }
        for unit in &self.units {
            pids.extend(all(&Wanted::Unit(unit.clone()), "unit", unit)?);
        }
        for group in &self.cgroups {
            pids.extend(all(&Wanted::Cgroup(group.clone()), "control group", group)?);
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(Target::Processes(pids))
    }
}

fn all(wanted: &Wanted, what: &'static str, name: &str) -> Result<Vec<u32>, TargetError> {
    let found = find(wanted);
    if found.is_empty() {
        return Err(TargetError::Empty {
            what,
            name: printable(name).into_owned(),
        });
    }
    Ok(found.iter().map(|process| process.key.pid).collect())
}

/// A pid, the only process of a name, or all of a unit or container.
fn by_name(name: &str, verb: &'static str) -> Result<Vec<u32>, TargetError> {
    if let Ok(pid) = name.parse() {
        return Ok(vec![pid]);
    }
    let named = find(&Wanted::Name(name.to_owned()));
    if let [only] = named.as_slice() {
        return Ok(vec![only.key.pid]);
    }
    if !named.is_empty() {
        return Err(TargetError::Ambiguous {
            name: printable(name).into_owned(),
            count: named.len(),
            verb,
            list: list(&named),
        });
    }
    let of_group = [Wanted::Unit(name.to_owned()), Wanted::Container(name.to_owned())]
        .iter()
        .map(find)
        .find(|found| !found.is_empty());
    let of_group = of_group.ok_or_else(|| TargetError::NotFound {
        name: printable(name).into_owned(),
        verb,
        is_command: is_command(name),
    })?;
    Ok(of_group.iter().map(|process| process.key.pid).collect())
}

/// Whether a shell would find a program of this name.
fn is_command(name: &str) -> bool {
    let is_program = |path: &std::path::Path| {
        fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    };
    if name.contains('/') {
        return is_program(name.as_ref());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| is_program(&folder.join(name)))
}

/// A table of processes: what tells one from another.
fn list(found: &[Identity]) -> String {
    let users = Users::default();
    let mut text = format!("{:>9}  {:<12} {:>9}  COMMAND", "PID", "USER", "RESIDENT");
    for process in found.iter().take(MAX_LISTED) {
        let pid = process.key.pid;
        let resident = Footprint::open(pid).and_then(|mut footprint| footprint.resident());
        let resident = resident.map_or("?".to_owned(), |resident| quantity::bytes(resident.rss));
        let user = users.name(process.uid).unwrap_or_else(|| process.uid.to_string());
        let command = process.cmdline.join(" ");
        let command = if command.is_empty() { &process.comm } else { &command };
        let command = printable(command);
        let _ = write!(
            text,
            "\n{pid:>9}  {user:<12} {resident:>9}  {}",
            fit(&command, COMMAND_WIDTH)
        );
    }
    if found.len() > MAX_LISTED {
        let _ = write!(text, "\n… and {} more", found.len() - MAX_LISTED);
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        target: TargetArgs,
    }

    fn resolved(words: &[&str]) -> Result<Target, String> {
        let words = std::iter::once("test").chain(words.iter().copied());
        let command = Command::try_parse_from(words).map_err(|error| error.kind().to_string())?;
        command.target.resolve("record").map_err(|error| error.to_string())
    }

    #[test]
    fn pids_are_taken_as_they_are() {
        let pids = |words: &[&str]| match resolved(words) {
            Ok(Target::Processes(pids)) => pids,
            other => panic!("{other:?}"),
        };
        assert_eq!(pids(&["-p", "8", "-p", "7", "-p", "8"]), [7, 8]);
        assert_eq!(pids(&["9"]), [9]);
    }

    #[test]
    fn a_command_without_its_dashes_gets_the_words_that_it_needs() {
        let error = resolved(&["sleep", "5"]).expect_err("names no process");
        insta::assert_snapshot!(error, @"`sleep 5` names no process: to start it as a command, put `--` before it (leaktrace record -- sleep 5); for several processes repeat -p");
        // This program, but no process other than this one.
        let own = env::current_exe()
            .expect("this program has a path")
            .display()
            .to_string();
        let error = resolved(&[&own]).expect_err("no other process is called so");
        assert!(
            error.ends_with(&format!("is called `{own}`; to start it: leaktrace record -- {own}")),
            "{error}"
        );
        let error = resolved(&["no-such-program-anywhere"]).expect_err("nothing is called so");
        insta::assert_snapshot!(error, @"no process, unit or container is called `no-such-program-anywhere`");
    }

    #[test]
    fn nothing_and_both_are_wrong_usage() {
        assert!(resolved(&[]).is_err());
        assert!(resolved(&["-p", "1", "--", "true"]).is_err());
        assert!(resolved(&["name", "--", "true"]).is_err());
        assert!(matches!(resolved(&["--", "true"]), Ok(Target::Command(_))));
    }

    #[test]
    fn an_empty_unit_is_named() {
        let error = resolved(&["-u", "no-such-unit"]).expect_err("there is none");
        insta::assert_snapshot!(error, @"no process is in unit `no-such-unit`");
    }
}
