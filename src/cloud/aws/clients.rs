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
/// Calls are tried so often, as the AWS SDK for Go does by default: what still fails is tried
/// again by the work queue of the object that needs it, with growing delays.
const ATTEMPTS: u32 = 3;

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
/// Retries are the SDKs' standard ones: three attempts, delays that double from up to a second,
/// with jitter, and a budget of retries for each API.
pub async fn load_config() -> SdkConfig {
    let retries = RetryConfig::standard().with_max_attempts(ATTEMPTS);
    let mut loader =
        aws_config::defaults(BehaviorVersion::latest()).retry_config(retries).timeout_config(
            // The SDK sets no limit to an attempt or an operation, and a connection that hangs
            // would keep a worker forever. An attempt has to outlast an SQS long poll and a slow
            // CreateFleet.
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
            // The price list API exists in a few regions only.
            .region(Region::new(pricing_region(&region).map_or(region.clone(), str::to_owned)))
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

/// The region whose price list API answers for a region: one of the same partition, since
/// credentials are good in theirs alone. `None` where the partition has none.
pub(super) fn pricing_region(region: &str) -> Option<&'static str> {
    match partition(region) {
        "aws" => Some(match region.split('-').next() {
            Some("ap") => "ap-south-1",
            Some("eu") => "eu-central-1",
            _ => "us-east-1",
        }),
        "aws-cn" => Some("cn-northwest-1"),
        "aws-eusc" => Some("eusc-de-east-1"),
        _ => None,
    }
}

/// The currency of a region's price list.
pub(super) fn currency(region: &str) -> &'static str {
    match partition(region) {
        "aws-cn" => "CNY",
        "aws-eusc" => "EUR",
        _ => "USD",
    }
}

/// The partition of AWS that a region is in, as ARNs name it.
fn partition(region: &str) -> &'static str {
    const PARTITIONS: [(&str, &str); 7] = [
        ("cn-", "aws-cn"),
        ("us-gov-", "aws-us-gov"),
        ("us-iso-", "aws-iso"),
        ("us-isob-", "aws-iso-b"),
        ("eu-isoe-", "aws-iso-e"),
        ("us-isof-", "aws-iso-f"),
        ("eusc-", "aws-eusc"),
    ];
    PARTITIONS.iter().find(|(prefix, _)| region.starts_with(prefix)).map_or("aws", |(_, p)| *p)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_come_from_a_price_list_of_the_same_partition() {
        for (region, list, money) in [
            ("us-west-2", Some("us-east-1"), "USD"),
            ("sa-east-1", Some("us-east-1"), "USD"),
            ("ap-northeast-2", Some("ap-south-1"), "USD"),
            ("eu-west-1", Some("eu-central-1"), "USD"),
            ("cn-north-1", Some("cn-northwest-1"), "CNY"),
            ("eusc-de-east-1", Some("eusc-de-east-1"), "EUR"),
            ("us-gov-west-1", None, "USD"),
            ("us-iso-east-1", None, "USD"),
            ("us-isob-east-1", None, "USD"),
            ("eu-isoe-west-1", None, "USD"),
        ] {
            assert_eq!((pricing_region(region), currency(region)), (list, money), "{region}");
        }
    }
}
