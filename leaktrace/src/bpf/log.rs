//! What the kernel side logs, through aya-log: rare events only, shown with `LEAKTRACE_LOG=debug`.

use aya::Ebpf;
use aya_log::EbpfLogger;

/// Reader of the kernel side's log. Logs nothing if the kernel side was built without.
pub struct KernelLog(Option<EbpfLogger<&'static dyn log::Log>>);

impl KernelLog {
    pub(super) fn new(ebpf: &mut Ebpf) -> Self {
        match EbpfLogger::init(ebpf) {
            Ok(logger) => Self(Some(logger)),
            Err(error) => {
                tracing::debug!("the kernel side's log cannot be read: {error}");
                Self(None)
            }
        }
    }

    /// Passes on what came since the last time.
    pub fn flush(&mut self) {
        if let Some(logger) = &mut self.0 {
            logger.flush();
        }
    }
}
