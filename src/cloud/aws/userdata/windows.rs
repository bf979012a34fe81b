//! Windows: a PowerShell script that calls the image's bootstrap script.

use super::{Bootstrap, UserDataError, dns_ip, kubelet_args};

/// The whole script: the user's own part, then the call.
pub(super) fn render(bootstrap: &Bootstrap) -> Result<String, UserDataError> {
    // Tags within the tags would end the script before the call.
    if bootstrap.custom.to_ascii_lowercase().contains("powershell>") {
        return Err(UserDataError::Custom(
            "expected PowerShell without its tags, found a <powershell> tag".to_owned(),
        ));
    }
    let mut text = "<powershell>\n".to_owned();
    if !bootstrap.custom.is_empty() {
        text.push_str(&bootstrap.custom);
        text.push('\n');
    }
    text.push_str("[string]$EKSBootstrapScriptFile = \"$env:ProgramFiles\\Amazon\\EKS\\Start-EKSBootstrap.ps1\"\n");
    text.push_str(&format!(
        "& $EKSBootstrapScriptFile -EKSClusterName '{}' -APIServerEndpoint '{}'",
        bootstrap.cluster_name, bootstrap.cluster_endpoint
    ));
    if !bootstrap.ca_bundle.is_empty() {
        text.push_str(&format!(" -Base64ClusterCA '{}'", bootstrap.ca_bundle));
    }
    text.push_str(&format!(" -KubeletExtraArgs '{}'", kubelet_args(bootstrap)));
    if let Some(ip) = dns_ip(bootstrap) {
        text.push_str(&format!(" -DNSClusterIP '{ip}'"));
    }
    text.push_str("\n</powershell>");
    Ok(text)
}
