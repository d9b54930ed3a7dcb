//! Ends the program, with everything that is known, when something does not end by itself.

use std::sync::{Arc, Mutex, Once, mpsc};
use std::time::Duration;

use super::round::Round;
use super::system::{Target, processes_of};

/// No task is open for this long, and no step of a round takes it, unless something hangs.
pub const SOON: Duration = Duration::from_secs(60);

static WATCHED: Mutex<Option<Arc<Round>>> = Mutex::new(None);

/// Watches this round from now on, or none.
pub fn watch(round: Option<Arc<Round>>) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let watch = std::thread::Builder::new().name("watchdog".into());
        let (runs, running) = mpsc::channel();
        let watch = watch.spawn(move || {
            drop(runs);
            look_again_and_again();
        });
        drop(watch.unwrap());
        let _: Result<(), _> = running.recv(); // from when it has its name
    });
    *WATCHED.lock().unwrap() = round;
}

fn look_again_and_again() {
    loop {
        std::thread::sleep(Duration::from_millis(500));
        let watched = WATCHED.lock().unwrap();
        let Some(complaint) = watched.as_ref().and_then(|round| overdue(round)) else { continue };
        let round = watched.as_ref().unwrap();
        eprintln!("HANGS: {complaint}\n{}\nreplay: {}", round.dump(), round.plan.replay());
        for process in processes_of(&round.place) {
            Target::find(process.pid, &round.place).map(|target| target.signal(libc::SIGKILL));
        }
        std::process::exit(101);
    }
}

fn overdue(round: &Round) -> Option<String> {
    let state = round.state();
    let (phase, since) = state.phase;
    let oldest = state.open.iter().max_by_key(|(_, open)| open.since.elapsed());
    match oldest {
        Some((id, open)) if open.since.elapsed() > SOON => {
            Some(format!("task {id} ({:?}) is not resolved", open.kind))
        }
        // A phase with tasks in it ends when they do.
        _ if since.elapsed() > SOON * 2 => Some(format!("the phase `{phase}` does not end")),
        _ => None,
    }
}
