//! Workers that are placed elsewhere: through a command, Slurm and ssh, with real servers that each
//! test starts for itself, on loopback and in a directory of its own.
//!
//! A test is an `async fn` of a [`Stage`]; [`ways!`] makes one test of it for each way that it is to be
//! played on. Those with servers are played where `PROCESSION_SERVERS` is set. Where a server is not installed its tests say so and pass, unless
//! `PROCESSION_TEST_SKIPS_NOTHING` is set.

#![cfg(all(target_os = "linux", feature = "auto-init"))]
#![allow(unreachable_pub, unsafe_code)]

#[macro_use]
#[path = "../common/mod.rs"]
mod common;

/// Makes a module of a test for each way, of each function named.
macro_rules! ways {
    ($($name:ident: $($way:ident)+;)*) => { $(
        mod $name {
            $(
                #[test]
                #[allow(non_snake_case)]
                fn $way() {
                    crate::stage::play(crate::stage::Way::$way, async |stage| super::$name(stage).await);
                }
            )+
        }
    )* };
}

mod behaviour;
mod example;
mod kills;
mod payloads;
#[path = "../../examples/cluster/servers.rs"]
mod servers;
#[path = "../../examples/cluster/slurm.rs"]
mod slurm;
mod ssh;
mod stage;
mod strangers;
