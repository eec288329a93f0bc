//! Waiting that ends early on Ctrl-C, so that whatever was changed in the target can be put back.

use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Catches SIGINT, SIGTERM and SIGHUP from its creation on.
pub struct Pause {
    runtime: tokio::runtime::Runtime,
    signals: [Signal; 3],
}

impl Pause {
    /// Installs the handlers.
    pub fn new() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("failed to start a timer")?;
        let signals = runtime.block_on(async {
            Ok::<_, std::io::Error>([
                signal(SignalKind::interrupt())?,
                signal(SignalKind::terminate())?,
                signal(SignalKind::hangup())?,
            ])
        });
        Ok(Self {
            runtime,
            signals: signals.context("failed to catch signals")?,
        })
    }

    /// Waits; `None` waits for a signal alone. True: a signal ended it.
    pub fn wait(&mut self, duration: Option<Duration>) -> bool {
        let [interrupt, terminate, hangup] = &mut self.signals;
        self.runtime.block_on(async {
            let timer = async {
                match duration {
                    Some(duration) => tokio::time::sleep(duration).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = timer => false,
                _ = interrupt.recv() => true,
                _ = terminate.recv() => true,
                _ = hangup.recv() => true,
            }
        })
    }
}
