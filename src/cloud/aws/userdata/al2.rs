//! Amazon Linux 2: a shell script that calls the image's bootstrap script.

use super::mime::{self, Ending, Part};
use super::{Bootstrap, UserDataError, dns_ip, kubelet_args};

/// The whole archive: the user's parts first, then the script.
pub(super) fn render(bootstrap: &Bootstrap) -> Result<String, UserDataError> {
    let mut parts = custom_parts(&bootstrap.custom)?;
    parts.push(Part::new(mime::SHELL_SCRIPT, &script(bootstrap)));
    Ok(mime::write(&parts))
}

fn custom_parts(custom: &str) -> Result<Vec<Part>, UserDataError> {
    if custom.is_empty() {
        return Ok(Vec::new());
    }
    if mime::is_archive(custom) {
        return mime::read(custom, Ending::Required);
    }
    Ok(vec![Part::new(mime::SHELL_SCRIPT, custom)])
}

fn script(bootstrap: &Bootstrap) -> String {
    let ca = if bootstrap.ca_bundle.is_empty() {
        String::new()
    } else {
        format!("--b64-cluster-ca '{}'", bootstrap.ca_bundle)
    };
    let mut call = vec![format!(
        "/etc/eks/bootstrap.sh '{}' --apiserver-endpoint '{}' {ca}",
        bootstrap.cluster_name, bootstrap.cluster_endpoint
    )];
    if let Some(ip) = dns_ip(bootstrap) {
        // The bootstrap script assumes IPv4 unless an argument says otherwise.
        if ip.parse::<std::net::Ipv4Addr>().is_err() {
            call.push("--ip-family ipv6".to_owned());
        }
        call.push(format!("--dns-cluster-ip '{ip}'"));
    }
    if bootstrap.kubelet.get("maxPods").is_some() {
        // Otherwise the script would set its own limit beside the one in the kubelet's arguments.
        call.push("--use-max-pods false".to_owned());
    }
    call.push(format!("--kubelet-extra-args '{}'", kubelet_args(bootstrap)));
    if bootstrap.raid0 {
        call.push("--local-disks raid0".to_owned());
    }
    format!(
        "#!/bin/bash -xe\nexec > >(tee /var/log/user-data.log|logger -t user-data -s 2>/dev/console) 2>&1\n{}",
        call.join(" \\\n")
    )
}
