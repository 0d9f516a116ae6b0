//! Where things are, and how cargo is called.

use anyhow::{Context, Result, ensure};
use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// The root of the workspace.
pub fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// Where cargo puts what it builds.
pub fn target_dir() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(given) => root().join(given),
        None => root().join("target"),
    }
}

/// The same cargo that runs us, in the root of the workspace.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    // The simulation is a workspace of its own, but shares what is built.
    command.env("CARGO_TARGET_DIR", target_dir());
    command
}

/// Cargo in the simulation's folder: only there does it read the simulation's own settings.
pub fn sim_cargo() -> Command {
    let mut command = cargo();
    command.current_dir(root().join("sim"));
    command
}

/// Builds `sempre` in release mode, and says where it is.
pub fn build_sempre() -> Result<PathBuf> {
    let status = cargo()
        .args(["build", "--quiet", "--release", "--package", "sempre"])
        .status()
        .context("could not start cargo")?;
    ensure!(status.success(), "sempre does not build; cargo says why above");
    Ok(sempre_lab::sempre::default_binary(&target_dir()))
}
