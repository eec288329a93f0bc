//! The terminal: taken over at the start, given back at every end.
//!
//! Invariant: once [`Screen::open`] succeeded, the terminal is in its old state again after the screen is dropped, after
//! a panic on any thread, and after SIGTERM, SIGHUP or SIGINT, even if the program hangs meanwhile.

use std::{
    io::{self, Stdout},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::Sender,
    },
    thread,
    time::Duration,
};

use crossterm::{
    cursor::Show,
    event::{DisableBracketedPaste, EnableBracketedPaste, Event as Input},
    execute,
    terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode},
};
use nix::sys::signal::{Signal, raise};
use ratatui::{Frame, Terminal, backend::CrosstermBackend};
use tokio::signal::unix::{SignalKind, signal};

use super::{source::SourceError, state::Event};

/// How often the thread that reads keys looks whether it shall end.
const INPUT: Duration = Duration::from_millis(100);
/// How long an orderly end may take after a signal.
const PATIENCE: Duration = Duration::from_secs(8);
/// Status of a program that had to be cut short by a signal.
const CUT_SHORT: i32 = 1;

/// A panic has given the terminal back already.
static PANICKED: AtomicBool = AtomicBool::new(false);

/// The terminal, taken over.
pub struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl Screen {
    /// Takes the terminal over.
    ///
    /// # Errors
    /// When it is none, or does not answer.
    pub fn open() -> io::Result<Self> {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            give_back();
            PANICKED.store(true, Ordering::SeqCst);
            hook(panic);
        }));
        let taken = take().and_then(|()| Terminal::new(CrosstermBackend::new(io::stdout())));
        match taken {
            Ok(terminal) => Ok(Self { terminal }),
            Err(error) => {
                give_back();
                Err(error)
            }
        }
    }

    /// Draws.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        self.terminal.draw(draw).map(|_| ())
    }

    /// Takes the terminal over once more, after somebody else may have used it.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn renew(&mut self) -> io::Result<()> {
        take()?;
        self.terminal.clear()
    }

    /// Gives the terminal to the shell until the shell continues this program.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn suspend(&mut self) -> io::Result<()> {
        give_back();
        raise(Signal::SIGTSTP)?;
        self.renew()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if !PANICKED.load(Ordering::SeqCst) {
            give_back();
        }
    }
}

/// Whether a thread panicked: the terminal is given back then, and the program must end.
pub fn is_lost() -> bool {
    PANICKED.load(Ordering::SeqCst)
}

fn take() -> io::Result<()> {
    enable_raw_mode()?;
    execute!(io::stdout(), EnterAlternateScreen, EnableBracketedPaste)
}

/// Each step is tried, whatever becomes of the others.
fn give_back() {
    let _ = execute!(io::stdout(), DisableBracketedPaste);
    let _ = execute!(io::stdout(), LeaveAlternateScreen);
    let _ = execute!(io::stdout(), Show);
    let _ = disable_raw_mode();
}

/// Starts the thread that reads keys. It ends a moment after `stop` is set.
///
/// # Errors
/// When the thread cannot be started.
pub fn read_keys(events: Sender<Event>, stop: Arc<AtomicBool>) -> Result<thread::JoinHandle<()>, SourceError> {
    let read = move || {
        while !stop.load(Ordering::Relaxed) {
            let event = match next_input() {
                Ok(None) => continue,
                Ok(Some(event)) => event,
                // Nobody can press a key any more.
                Err(_) => Event::End,
            };
            let is_last = matches!(event, Event::End);
            if events.send(event).is_err() || is_last {
                break;
            }
        }
    };
    thread::Builder::new()
        .name("keys".to_owned())
        .spawn(read)
        .map_err(SourceError::Thread)
}

fn next_input() -> io::Result<Option<Event>> {
    if !crossterm::event::poll(INPUT)? {
        return Ok(None);
    }
    Ok(match crossterm::event::read()? {
        Input::Key(key) => Some(Event::Key(key)),
        Input::Paste(text) => Some(Event::Paste(text)),
        Input::Resize(..) => Some(Event::Redraw),
        _ => None,
    })
}

/// Starts the thread that waits for signals: those that end the program, and the one that continues it.
///
/// # Errors
/// When signals cannot be waited for.
pub fn wait_for_signals(events: Sender<Event>) -> Result<(), SourceError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(SourceError::Thread)?;
    // Registered before the terminal is taken over: from here on no signal ends the program behind its back.
    let (mut terminate, mut hang_up, mut interrupt, mut resume) = {
        let _entered = runtime.enter();
        let wait = |kind| signal(kind).map_err(SourceError::Thread);
        (
            wait(SignalKind::terminate())?,
            wait(SignalKind::hangup())?,
            wait(SignalKind::interrupt())?,
            wait(SignalKind::from_raw(Signal::SIGCONT as i32))?,
        )
    };
    let wait = async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = hang_up.recv() => break,
                _ = interrupt.recv() => break,
                _ = resume.recv() => {
                    if events.send(Event::Resumed).is_err() {
                        return;
                    }
                }
            }
        }
        if events.send(Event::End).is_err() {
            return;
        }
        // Still here after so long: the terminal does not take output, or an answer does not come.
        tokio::time::sleep(PATIENCE).await;
        let _ = disable_raw_mode();
        std::process::exit(CUT_SHORT);
    };
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || runtime.block_on(wait))
        .map(|_| ())
        .map_err(SourceError::Thread)
}
