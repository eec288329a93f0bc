//! Starting a command that is traced from its first instruction.

use std::{ffi::OsString, process::Child};

use super::{Live, Mode, RecordError, Settings};
use crate::{model::ProcessKey, session::launch::Held};

impl Live {
    /// Starts a command and traces it with a mean of `interval` bytes between samples. `held` is called before it runs.
    ///
    /// # Errors
    /// It cannot be started, or the kernel refuses; then the command is ended before it ran.
    pub fn launch(
        &mut self,
        command: &[OsString],
        interval: u64,
        held: impl FnOnce(ProcessKey),
    ) -> Result<(ProcessKey, Child), RecordError> {
        let stopped = Held::start(command)?;
        let pid = stopped.pid();
        let key = match self.prepare(pid, interval) {
            Ok(key) => key,
            Err(error) => {
                stopped.kill();
                return Err(error);
            }
        };
        held(key);
        let child = stopped.run_startup(|| self.tracer.refresh(pid).map_err(RecordError::from))?;
        Ok((key, child))
    }

    /// Attaches to a command that has not begun: its allocator may come with its libraries.
    fn prepare(&mut self, pid: u32, interval: u64) -> Result<ProcessKey, RecordError> {
        let survey = self.tracer.survey(pid)?;
        let key = survey.key();
        let runtime = survey.runtime();
        let settings = Settings::sampled(interval, 0);
        self.attach(survey, settings)?;
        self.begin(key, Mode::Sampled, runtime, settings);
        Ok(key)
    }
}
