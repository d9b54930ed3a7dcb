//! A sandbox around this process, by Landlock, seccomp and the loss of all capabilities.
//!
//! All of it concerns the calling thread and the threads that it starts. So it must be the only one.

use super::{Allowed, syscalls};
use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetStatus, Scope,
};
use rustix::thread::{CapabilitySet, CapabilitySets};
use std::path::Path;

/// What no kernel with Landlock lacks: it is insisted on.
const LEAST: ABI = ABI::V1;

/// What is used where the kernel knows it. It closes nothing that the system call filter leaves
/// open, but closes it a second time.
const BEST: ABI = ABI::V6;

/// Whether the kernel can enforce a sandbox, or why not.
pub(crate) fn check() -> Result<(), String> {
    ruleset().map(drop)?;
    syscalls::check()
}

/// Shuts this process, which must have a single thread, into the sandbox.
pub(crate) fn enter(allowed: &Allowed<'_>) -> Result<(), String> {
    match super::thread_count() {
        Ok(1) => {}
        Ok(_) => return Err("static constructors of the program have started threads".into()),
        Err(error) => return Err(format!("failed to count threads: {error}")),
    }
    let signals_are_scoped = restrict_files(allowed)?;
    let filters = syscalls::filters(allowed, signals_are_scoped)?;
    rustix::thread::set_capabilities(None, NO_CAPABILITIES)
        .map_err(|error| format!("failed to drop capabilities: {error}"))?;
    filters.install()
}

const NO_CAPABILITIES: CapabilitySets = CapabilitySets {
    effective: CapabilitySet::empty(),
    permitted: CapabilitySet::empty(),
    inheritable: CapabilitySet::empty(),
};

fn ruleset() -> Result<RulesetCreated, String> {
    let insist = |error: landlock::RulesetError| {
        format!("this kernel has no Landlock, or it is switched off (Linux 5.13 has it): {error}")
    };
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    let ruleset = ruleset.handle_access(AccessFs::from_all(LEAST)).map_err(insist)?;
    let ruleset = ruleset.set_compatibility(CompatLevel::BestEffort);
    let ruleset = ruleset.handle_access(AccessFs::from_all(BEST)).map_err(insist)?;
    let ruleset = ruleset.scope(Scope::from_all(BEST)).map_err(insist)?;
    ruleset.create().map_err(insist)
}

/// Restricts access to files; whether the kernel could do all of what was wished for, of which the
/// last that it learnt is to bound where signals go.
fn restrict_files(allowed: &Allowed<'_>) -> Result<bool, String> {
    let read = AccessFs::from_read(BEST) & !AccessFs::Execute;
    // For the names in backtraces.
    let mut ruleset = allow(ruleset()?, Path::new("/proc/self/exe"), AccessFs::ReadFile.into())?;
    for path in allowed.read {
        ruleset = allow(ruleset, path, read)?;
    }
    for path in allowed.write {
        ruleset = allow(ruleset, path, AccessFs::from_all(BEST) & !AccessFs::Execute & !DEVICES)?;
    }
    for path in allowed.execute {
        ruleset = allow(ruleset, path, read | AccessFs::Execute)?;
    }
    if !allowed.execute.is_empty() {
        // What the standard library gives a child for its standard input, if nothing else is said.
        ruleset = allow(ruleset, Path::new("/dev/null"), AccessFs::ReadFile | AccessFs::WriteFile)?;
    }
    let restricted = ruleset.restrict_self();
    let status = restricted.map_err(|error| format!("failed to restrict file access: {error}"))?;
    Ok(status.ruleset == RulesetStatus::FullyEnforced)
}

/// What opens a way to the kernel rather than to a file.
const DEVICES: BitFlags<AccessFs> = landlock::make_bitflags!(AccessFs::{MakeChar | MakeBlock | IoctlDev});

/// Adds a file, or a directory and what is in it.
fn allow(ruleset: RulesetCreated, path: &Path, access: BitFlags<AccessFs>) -> Result<RulesetCreated, String> {
    let explain = |error: &dyn std::fmt::Display| {
        format!("`{}`, which the sandbox is to give access to: {error}", path.display())
    };
    let is_directory = std::fs::metadata(path).map_err(|error| explain(&error))?.is_dir();
    let access = if is_directory { access } else { access & AccessFs::from_file(BEST) };
    let opened = PathFd::new(path).map_err(|error| explain(&error))?;
    ruleset.add_rule(PathBeneath::new(opened, access)).map_err(|error| explain(&error))
}
