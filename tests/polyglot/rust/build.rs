//! Generates the types of the contracts from their descriptors: the file that DESCRIPTORS names.
use std::{env, error::Error, fs};

use prost::Message;
use prost_types::FileDescriptorSet;

fn main() -> Result<(), Box<dyn Error>> {
    let descriptors = env::var("DESCRIPTORS")?;
    println!("cargo::rerun-if-env-changed=DESCRIPTORS");
    println!("cargo::rerun-if-changed={descriptors}");
    let files = FileDescriptorSet::decode(fs::read(&descriptors)?.as_slice())?;
    prost_build::Config::new().include_file("contracts.rs").compile_fds(files)?;
    Ok(())
}
