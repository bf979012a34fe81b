//! The AWS clients, made once from the ordinary configuration chain.

use std::time::Duration;

use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::ProvideRegion as _;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{AppName, BehaviorVersion, Region, SdkConfig};

mod observe;

use self::observe::Observer;

/// Region of clients whose configuration names none; the controller does not start without one.
const DEFAULT_REGION: &str = "us-east-1";
/// Calls are tried so often: throttling delays a launch, it does not fail it.
const ATTEMPTS: u32 = 8;

/// One client a service.
#[derive(Clone, Debug)]
pub struct Clients {
    /// The region that nodes are launched in.
    pub region: String,
    pub ec2: aws_sdk_ec2::Client,
    pub eks: aws_sdk_eks::Client,
    pub iam: aws_sdk_iam::Client,
    pub pricing: aws_sdk_pricing::Client,
    pub sqs: aws_sdk_sqs::Client,
    pub ssm: aws_sdk_ssm::Client,
    pub zonal_shift: aws_sdk_arczonalshift::Client,
}

/// Loads region, credentials and endpoints as every AWS tool does.
///
/// Retries are adaptive: each API has a token budget of its own and slows down by itself, with
/// jitter, while AWS refuses calls.
pub async fn load_config() -> SdkConfig {
    let retries = RetryConfig::adaptive()
        .with_max_attempts(ATTEMPTS)
        .with_initial_backoff(Duration::from_millis(500));
    let mut loader =
        aws_config::defaults(BehaviorVersion::latest()).retry_config(retries).timeout_config(
            TimeoutConfig::builder()
                .connect_timeout(Duration::from_secs(5))
                .operation_attempt_timeout(Duration::from_secs(60))
                .operation_timeout(Duration::from_secs(240))
                .build(),
        );
    if let Ok(name) = AppName::new(concat!("karpenter.sh-", env!("CARGO_PKG_VERSION"))) {
        loader = loader.app_name(name);
    }
    if !is_region_configured().await {
        tracing::debug!("retrieving region from IMDS");
    }
    loader.load().await
}

/// Whether the environment or the profile names a region; otherwise the machine is asked for its.
async fn is_region_configured() -> bool {
    EnvironmentVariableRegionProvider::new().region().await.is_some()
        || ProfileFileRegionProvider::new().region().await.is_some()
}

impl Clients {
    /// Clients on one configuration.
    #[must_use]
    pub fn new(config: &SdkConfig) -> Self {
        let region =
            config.region().map_or_else(|| DEFAULT_REGION.to_owned(), |r| r.as_ref().to_owned());
        let watch = Observer::default;
        let ec2 = aws_sdk_ec2::config::Builder::from(config).interceptor(watch());
        let eks = aws_sdk_eks::config::Builder::from(config).interceptor(watch());
        let iam = aws_sdk_iam::config::Builder::from(config).interceptor(watch());
        let pricing = aws_sdk_pricing::config::Builder::from(config)
            .region(Region::new(pricing_region(&region)))
            .interceptor(watch());
        let sqs = aws_sdk_sqs::config::Builder::from(config).interceptor(watch());
        let ssm = aws_sdk_ssm::config::Builder::from(config).interceptor(watch());
        let shift = aws_sdk_arczonalshift::config::Builder::from(config).interceptor(watch());
        Self {
            ec2: aws_sdk_ec2::Client::from_conf(ec2.build()),
            eks: aws_sdk_eks::Client::from_conf(eks.build()),
            iam: aws_sdk_iam::Client::from_conf(iam.build()),
            pricing: aws_sdk_pricing::Client::from_conf(pricing.build()),
            sqs: aws_sdk_sqs::Client::from_conf(sqs.build()),
            ssm: aws_sdk_ssm::Client::from_conf(ssm.build()),
            zonal_shift: aws_sdk_arczonalshift::Client::from_conf(shift.build()),
            region,
        }
    }
}

/// The region whose price list API answers for a region.
fn pricing_region(region: &str) -> &'static str {
    match region.split('-').next() {
        Some("ap") => "ap-south-1",
        Some("cn") => "cn-northwest-1",
        Some("eu") => "eu-central-1",
        _ => "us-east-1",
    }
}

/// The partition of AWS that a region is in, as ARNs name it.
#[must_use]
pub fn partition(region: &str) -> &'static str {
    if region.starts_with("cn-") {
        "aws-cn"
    } else if region.starts_with("us-gov-") {
        "aws-us-gov"
    } else {
        "aws"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_come_from_the_nearest_price_list() {
        assert_eq!(pricing_region("us-west-2"), "us-east-1");
        assert_eq!(pricing_region("ap-northeast-2"), "ap-south-1");
        assert_eq!(pricing_region("cn-north-1"), "cn-northwest-1");
        assert_eq!(pricing_region("eu-west-1"), "eu-central-1");
        assert_eq!(pricing_region("sa-east-1"), "us-east-1");
    }

    #[test]
    fn regions_have_partitions() {
        assert_eq!(partition("cn-north-1"), "aws-cn");
        assert_eq!(partition("us-gov-east-1"), "aws-us-gov");
        assert_eq!(partition("us-east-1"), "aws");
    }
}
