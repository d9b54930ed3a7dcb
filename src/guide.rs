// The pages in `docs/guide`, for `cargo doc` to show and for `cargo test` to run.
//
// There, a page's links lead to files. Of several definitions of a link the first one counts: those in
// front of a page here lead to where its targets are in this documentation.

#![doc = "[Coming from]: coming_from"]
#![doc = "[Recipes]: recipes"]
#![doc = "[Services]: services"]
#![doc = "[Troubleshooting]: troubleshooting"]
#![doc = ""]
#![doc = include_str!("../docs/guide/README.md")]

pub mod coming_from {
    #![doc = include_str!("../docs/guide/coming-from.md")]
}

pub mod recipes {
    #![doc = "[Services]: super::services"]
    #![doc = "[`Sandbox`]: crate::Sandbox"]
    #![doc = ""]
    #![doc = include_str!("../docs/guide/recipes.md")]
}

// Its snippets need the feature.
#[cfg(any(not(doctest), feature = "tower"))]
pub mod services {
    #![doc = "[`Builder::queue_capacity`]: crate::Builder::queue_capacity"]
    #![doc = "[`PoolStats`]: crate::PoolStats"]
    #![doc = "[`WorkerInfo`]: crate::WorkerInfo"]
    // These pages have pictures, and are in the repository alone.
    #![doc = "[Service]: https://docs.rs/crate/procession/latest/source/docs/service.md"]
    #![doc = "[Watching]: https://docs.rs/crate/procession/latest/source/docs/observability.md"]
    #![cfg_attr(feature = "tower", doc = "[`ProcessPool::service`]: crate::ProcessPool::service")]
    #![cfg_attr(not(feature = "tower"), doc = "[`ProcessPool::service`]: crate::ProcessPool")]
    #![doc = ""]
    #![doc = include_str!("../docs/guide/services.md")]
}

// With pictures, which rustdoc has no place for; so its snippets are only tested.
#[cfg(doctest)]
pub mod observability {
    #![doc = include_str!("../docs/observability.md")]
}

pub mod troubleshooting {
    #![doc = "[Services]: super::services"]
    #![doc = "[the timeline]: crate::Builder::timeline"]
    #![doc = ""]
    #![doc = include_str!("../docs/guide/troubleshooting.md")]
}
