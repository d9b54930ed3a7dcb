//! Waiting for the end of a process, but not for ever once it was killed.

use crate::process::{Killer, within};
use crate::sys::child::Ended;
use futures::future::{BoxFuture, FutureExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long a process that was killed may take to be dead. Then the kernel is stuck in it, or somebody who
/// traces it holds it on its way out, and it does not run any more.
pub(super) const LIMIT: Duration = Duration::from_secs(10);

/// Whether a process was given up.
#[derive(Default)]
pub(super) struct Undead(Arc<AtomicBool>);

impl Undead {
    pub(super) fn is_given_up(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

type End = BoxFuture<'static, Option<Ended>>;

/// Has the end of a process come within the limit when it is killed; `None` if nobody can tell how it was.
pub(super) fn within_limit(killer: Killer, mut ended: End) -> (Killer, End, Undead) {
    let (killed, undead) = (CancellationToken::new(), Undead::default());
    let (is_killed, is_given_up) = (killed.clone(), undead.0.clone());
    let kill = Killer::new(move || {
        killer.kill();
        killed.cancel();
    });
    let end = async move {
        if let Some(end) = is_killed.run_until_cancelled(&mut ended).await {
            return end;
        }
        within(LIMIT, ended).await.unwrap_or_else(|_| {
            is_given_up.store(true, Ordering::Release);
            None
        })
    };
    (kill, end.boxed(), undead)
}
