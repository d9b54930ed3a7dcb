//! Where the workers of tests are. Tests expect of a pool what they expect wherever its workers are; with
//! `PROCESSION_TEST_LAUNCHER` these are behind a connection: `tcp`, `stdio` or `tls`.
//!
//! What cannot be expected elsewhere says so by [`here_only!`], and why.

use procession::Builder;

/// The way to the workers, if they are not this program's own children.
pub fn way() -> Option<String> {
    std::env::var("PROCESSION_TEST_LAUNCHER").ok().filter(|way| !way.is_empty())
}

/// Whether workers are elsewhere.
pub fn is_elsewhere() -> bool {
    way().is_some()
}

/// Has a test end, and say so, where workers are elsewhere.
macro_rules! here_only {
    ($reason:literal) => {
        if crate::common::is_elsewhere() {
            println!("only of workers that are this program's own: {}", $reason);
            return;
        }
    };
}

/// A builder of a pool with its workers where those of tests are to be.
#[cfg(feature = "remote")]
pub fn placed(builder: Builder) -> Builder {
    use procession::Launcher;
    let launcher = Launcher::command(["env"]).bind(([127, 0, 0, 1], 0).into());
    match way().as_deref() {
        None => builder,
        Some("tcp") => builder.launcher(launcher),
        Some("stdio") => builder.launcher(launcher.over_stdio(true)),
        #[cfg(feature = "remote-tls")]
        Some("tls") => builder.launcher(launcher.encrypted(true)),
        Some(other) => panic!("there is no way `{other}`"),
    }
}

#[cfg(not(feature = "remote"))]
pub fn placed(builder: Builder) -> Builder {
    assert!(!is_elsewhere(), "workers elsewhere need the feature `remote`");
    builder
}
