package feature

// networks are a bridge with an odd MTU, one without addresses, and the LAN
// by macvlan, with addresses of both families and without.
const networks = `
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: blue}
spec:
  config: '{"cniVersion": "1.0.0", "type": "bridge", "bridge": "blue0", "mtu": 1400,
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.30.0.0/24"}], [{"subnet": "fd30::/64"}]]}}'
---
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: plain}
spec:
  config: '{"cniVersion": "1.0.0", "type": "bridge", "bridge": "plain0"}'
---
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: lan}
spec:
  config: '{"cniVersion": "1.0.0", "type": "macvlan", "master": "eth1", "mode": "bridge",
    "ipam": {"type": "whereabouts", "ipRanges": [
      {"range": "172.16.1.0/24", "range_start": "172.16.1.100", "range_end": "172.16.1.120"},
      {"range": "fd00:100::/64", "range_start": "fd00:100::100", "range_end": "fd00:100::1ff"}]}}'
---
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: lan-boot}
spec:
  config: '{"cniVersion": "1.0.0", "type": "macvlan", "master": "eth1", "mode": "bridge",
    "ipam": {"type": "host-local", "ranges": [
      [{"subnet": "172.16.1.0/24", "rangeStart": "172.16.1.130", "rangeEnd": "172.16.1.139"}],
      [{"subnet": "fd00:100::/64", "rangeStart": "fd00:100::130", "rangeEnd": "fd00:100::139"}]]}}'
---
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: lan-plain}
spec:
  config: '{"cniVersion": "1.0.0", "type": "macvlan", "master": "eth1", "mode": "bridge"}'
---
apiVersion: v1
kind: Pod
metadata:
  name: peer
  annotations:
    k8s.v1.cni.cncf.io/networks: '[{"name": "blue", "interface": "blue0"}, {"name": "plain", "interface": "plain0"}]'
spec:
  containers: [{name: app, image: localhost/peer}]
---
# who is on the LAN and nobody's guest: hears what the LAN's own servers say
apiVersion: v1
kind: Pod
metadata:
  name: control
  annotations:
    k8s.v1.cni.cncf.io/networks: lan-plain@lan0
spec:
  containers: [{name: app, image: localhost/control}]
`

// full is a VM with one of everything; PULLED and HOSTDISK are filled in.
const full = `
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {name: full}
spec:
  runStrategy: Always
  template:
    spec:
      hostname: full
      domain:
        cpu: {sockets: 1, cores: 2, threads: 1}
        memory: {guest: 256Mi}
        firmware:
          kernelBoot:
            kernelArgs: console=ttyS0 quiet weft.serve=8080,8081,9090
            container: {image: "localhost/weft/guest:latest", kernelPath: /boot/vmlinuz, initrdPath: /boot/initrd}
        devices:
          networkInterfaceMultiqueue: true
          disks:
            - {name: system, disk: {bus: virtio}}
            - {name: kept, disk: {bus: scsi}}
            - {name: scratch, serial: SCRATCH01, disk: {bus: virtio}}
            - {name: seed, disk: {bus: virtio}}
          interfaces:
            - name: default
              masquerade: {}
              acpiIndex: 101
              ports: [{name: web, port: 8080}, {protocol: UDP, port: 9090}]
              dhcpOptions:
                bootFileName: boot/full.ipxe
                tftpServerName: 192.0.2.69
                ntpServers: [192.0.2.123, 192.0.2.124]
                privateOptions: [{option: 224, value: colour=blue}, {option: 240, value: last}]
            - {name: blue, bridge: {}, pciAddress: "0000:00:08.0"}
            - {name: fixed, bridge: {}, macAddress: "02:00:00:00:f1:01"}
            - {name: lan, bridge: {}, macAddress: "02:00:00:00:1a:01"}
            - {name: pulled, bridge: {}, state: PULLED}
            - {name: e1000, bridge: {}, model: e1000}
            - {name: e1000e, bridge: {}, model: e1000e}
            - {name: rtl8139, bridge: {}, model: rtl8139}
            - {name: pcnet, bridge: {}, model: pcnet}
            - {name: ne2k, bridge: {}, model: ne2k_pci}
      networks:
        - {name: default, pod: {vmNetworkCIDR: 10.77.0.0/24, vmIPv6NetworkCIDR: "fd77:77::/120"}}
        - {name: blue, multus: {networkName: blue}}
        - {name: fixed, multus: {networkName: plain}}
        - {name: lan, multus: {networkName: lan}}
        - {name: pulled, multus: {networkName: default/blue}}
        - {name: e1000, multus: {networkName: plain}}
        - {name: e1000e, multus: {networkName: plain}}
        - {name: rtl8139, multus: {networkName: plain}}
        - {name: pcnet, multus: {networkName: plain}}
        - {name: ne2k, multus: {networkName: plain}}
      volumes:
        - {name: system, containerDisk: {image: "localhost/test/disk:v1"}}
        - {name: kept, hostDisk: {path: HOSTDISK, type: DiskOrCreate, capacity: 8Mi}}
        - {name: scratch, emptyDisk: {capacity: 16Mi}}
        - name: seed
          cloudInitNoCloud:
            userData: |
              #cloud-config
              hostname: from-seed
              write_files:
                - {path: /etc/motd, content: "by cloud-init\n", permissions: "0640"}
              runcmd:
                - echo runcmd-says $(hostname)
            networkData: |
              version: 2
              ethernets:
                fixed:
                  match: {macaddress: "02:00:00:00:f1:01"}
                  addresses: [10.31.0.5/24]
                  routes: [{to: 10.99.0.0/16, via: 10.31.0.1}]
`

// netboot is a VM with no disk and no kernel: its firmware asks the network.
const netboot = `
apiVersion: kubevirt.io/v1
kind: VirtualMachineInstance
metadata: {name: netboot}
spec:
  terminationGracePeriodSeconds: 0 # iPXE knows no power button
  domain:
    memory: {guest: 64Mi}
    devices:
      interfaces:
        - name: lan
          bridge: {}
          bootOrder: 1
          macAddress: 02:00:00:00:1a:02
          dhcpOptions: {tftpServerName: 172.16.1.1, bootFileName: boot.ipxe}
  networks:
    - {name: lan, multus: {networkName: lan-boot}}
`
