//! `info`: what this build and this machine can do.

use anyhow::Result;
use serde_json::json;

use vision_mamba_models::weights::shipped;
use vision_mamba_ops::gemm;

use crate::cli::args::{Global, InfoArgs};
use crate::cli::printer::Printer;
use crate::runtime::{cuda_status, CudaStatus};

/// Prints versions, devices and the state of the operator library.
pub fn run(args: &InfoArgs, global: &Global, printer: &Printer) -> Result<()> {
    let cuda = cuda_status();
    let device = global.device.resolve()?;
    let operator = vision_mamba_ops::status();
    if let Some(threads) = global.threads {
        tch::set_num_threads(threads as i32);
    }
    let threads = tch::get_num_threads();
    let products = match gemm::is_onednn() {
        Ok(true) => "oneDNN",
        _ => "libtorch's own choice",
    };
    let gpu_operator = matches!(cuda, CudaStatus::Ready { .. }).then(vision_mamba_ops::cuda_status);
    if args.json {
        let value = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "libtorch": vision_mamba_ops::LIBTORCH_VERSION,
            "device": format!("{device:?}"),
            "cuda": cuda,
            "threads": threads,
            "cpu_products": products,
            "operator": { "ready": operator.is_ready(), "status": operator.to_string() },
            "weights": shipped::ALL.map(|it| json!({
                "name": it.name, "preset": it.preset, "command": it.command, "bytes": it.content.len()
            })),
            "cuda_operator": gpu_operator.map(|it| json!({ "ready": it.is_ready(), "status": it.to_string() })),
        });
        printer.data(&serde_json::to_string_pretty(&value)?);
        return Ok(());
    }
    let gpu = match cuda {
        CudaStatus::Ready { devices } => format!("{devices} GPU(s) ready"),
        CudaStatus::NoDriver => "no NVIDIA driver".to_string(),
        CudaStatus::NoDevice => "driver found, no usable GPU".to_string(),
        CudaStatus::NoLibrary { reason } => {
            format!("libtorch's CUDA half cannot be loaded: {reason}")
        }
    };
    let weights = shipped::ALL.map(|it| {
        let megabytes = it.content.len() as f64 / 1e6;
        format!(
            "\nweights       {} ({megabytes:.1} MB, {}), which `{}` takes when none are named",
            it.name, it.preset, it.command
        )
    });
    printer.data(&format!(
        "vision-mamba  {}\nlibtorch      {}\ndevice        {device:?}\nCUDA          {gpu}\nthreads       {threads}\nCPU products  {products}\noperator      {operator}{}{}",
        env!("CARGO_PKG_VERSION"),
        vision_mamba_ops::LIBTORCH_VERSION,
        gpu_operator.map_or(String::new(), |it| format!("\n              {it}")),
        weights.concat(),
    ));
    Ok(())
}
