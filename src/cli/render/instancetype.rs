//! Instance types as far as a launch template depends on them.

use std::sync::Arc;

use super::input::InputError;
use crate::api::labels;
use crate::api::v1::{EC2NodeClass, Operator};
use crate::cloud::aws::ami::AmiFamily;
use crate::cloud::aws::instancetype::expressions::{self, Variables};
use crate::cloud::aws::instancetype::kubelet::{MaxPods, Settings};
use crate::cloud::aws::launchtemplate::{Cluster, EFA, types_by_ami};
use crate::scheduling::instance_type::{InstanceType, Overhead};
use crate::scheduling::requirements::{Requirement, Requirements};
use crate::scheduling::resources::Name;

/// One line per type; `tests/env/instance_types.py` makes it, and names its source.
const TABLE: &str = include_str!("instance-types.csv");
/// Types that any account has.
const COMMON: [&str; 2] = ["m5.large", "m6g.large"];

/// What the table has of a type.
pub(in crate::cli) struct Facts<'a> {
    name: &'a str,
    arch: &'a str,
    pub(in crate::cli) vcpus: i64,
    memory_mib: i64,
    interfaces: i64,
    addresses: i64,
    gpus: i64,
    accelerators: i64,
    efa: i64,
}

impl<'a> Facts<'a> {
    fn of_line(line: &'a str) -> Option<Self> {
        let mut columns = line.split(',');
        let (name, arch) = (columns.next()?, columns.next()?);
        let mut number = || columns.next()?.parse().ok();
        Some(Self {
            name,
            arch,
            vcpus: number()?,
            memory_mib: number()?,
            interfaces: number()?,
            addresses: number()?,
            gpus: number()?,
            accelerators: number()?,
            efa: number()?,
        })
    }

    /// The facts of a type of that name.
    pub(in crate::cli) fn find(name: &str) -> Option<Facts<'static>> {
        TABLE.lines().filter_map(Facts::of_line).find(|f| f.name == name)
    }

    fn variables(&self, max_pods: i64) -> Variables<'_> {
        Variables {
            instance_type: self.name,
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            default_enis: self.interfaces,
            ips_per_eni: self.addresses,
            max_pods,
        }
    }

    /// The pod limit that the class gives a node of this type.
    fn pods(
        &self,
        class: &EC2NodeClass,
        settings: &Settings,
        cluster: &Cluster,
    ) -> Result<i64, String> {
        let features = AmiFamily::of(class).features();
        let without_addresses = class.spec.network_interfaces.iter().flatten();
        let without_addresses = without_addresses
            .filter(|i| i.network_card_index == 0 && i.interface_type == "efa-only")
            .count();
        let usable = self.interfaces - i64::try_from(without_addresses).unwrap_or(0);
        let by_default = match usable {
            // The kubelet's own default.
            _ if !features.eni_limited_pod_density => 110,
            ..=0 => 0,
            // The formula of the EKS documentation: the first address of each interface is its own,
            // and two pods of the system use the host's network.
            _ => usable * (self.addresses - 1) + 2,
        };
        let per_core = |limit: i64| match settings.pods_per_core {
            Some(n) if n > 0 && features.pods_per_core => limit.min(n * self.vcpus),
            _ => limit,
        };
        Ok(per_core(match &settings.max_pods {
            Some(MaxPods::Count(limit)) => *limit,
            Some(MaxPods::Expression(text)) if cluster.kubelet_expressions => {
                expressions::max_pods(text, &self.variables(per_core(by_default)))?
            }
            _ => by_default,
        }))
    }

    fn resolve(
        &self,
        class: &EC2NodeClass,
        cluster: &Cluster,
    ) -> Result<Arc<InstanceType>, InputError> {
        let settings = Settings::of(class).map_err(|e| InputError::new("", e))?;
        let pods = self.pods(class, &settings, cluster);
        let pods = pods.map_err(|e| InputError::new("spec.kubelet.maxPods", e))?;
        let variables = cluster.kubelet_expressions.then(|| self.variables(pods));
        let reserved = |map| settings.reserved(map, variables.as_ref());
        let family = AmiFamily::of(class);
        let count = |key: &str, count: i64| {
            if count == 0 {
                Requirement::new::<&str>(key, Operator::DoesNotExist, [])
            } else {
                Requirement::is(key, &count.to_string())
            }
        };
        let mut requirements: Requirements = [
            Requirement::is(labels::INSTANCE_TYPE, self.name),
            Requirement::is(labels::ARCH, self.arch),
            Requirement::is(labels::OS, if family.is_windows() { "windows" } else { "linux" }),
            count(labels::INSTANCE_GPU_COUNT, self.gpus),
            count(labels::INSTANCE_ACCELERATOR_COUNT, self.accelerators),
        ]
        .into_iter()
        .collect();
        if let Some(build) = family.windows_build() {
            requirements.add(Requirement::is(labels::WINDOWS_BUILD, build));
        }
        Ok(Arc::new(InstanceType {
            name: self.name.into(),
            requirements,
            capacity: [(Name::Pods, pods), (Name::from(EFA), self.efa)].into_iter().collect(),
            overhead: Overhead {
                kube_reserved: reserved(&settings.kube_reserved),
                system_reserved: reserved(&settings.system_reserved),
                ..Overhead::default()
            },
            ..InstanceType::default()
        }))
    }
}

/// The type that was asked for, else the first that the pool names, else a common one that has an
/// image.
pub(super) fn choose(
    asked: Option<&str>,
    class: &EC2NodeClass,
    requirements: &Requirements,
    cluster: &Cluster,
) -> Result<Arc<InstanceType>, InputError> {
    let named = requirements
        .get(labels::INSTANCE_TYPE)
        .filter(|r| !r.is_complement())
        .and_then(|r| r.values().min().map(str::to_owned));
    if let Some(name) = asked.or(named.as_deref()) {
        let facts = Facts::find(name).ok_or_else(|| {
            InputError::new(
                "--instance-type",
                format!("{name:?} is not a known instance type, expected one such as m5.large"),
            )
        })?;
        return facts.resolve(class, cluster);
    }
    let amis = class.status.as_ref().map(|s| s.amis.as_slice()).unwrap_or_default();
    let fits = |kind: &Arc<InstanceType>| {
        kind.requirements.intersects(requirements).is_ok()
            && !types_by_ami(amis, std::slice::from_ref(kind)).is_empty()
    };
    COMMON
        .iter()
        .filter_map(|name| Facts::find(name)?.resolve(class, cluster).ok())
        .find(fits)
        .or_else(|| {
            let all = TABLE.lines().filter_map(Facts::of_line);
            all.filter_map(|f| f.resolve(class, cluster).ok()).find(fits)
        })
        .ok_or_else(|| {
            InputError::new(
                "--instance-type",
                "no instance type suits both the images and the NodePool; name one",
            )
        })
}
