"""The rules for known errors of Ascend, HCCL, MindSpore and the host, as data.

Sources: CANN error codes (runtime error_code.json and rt_error_codes.h, hccl error_code.cc, MindSpore's
cann_error_cases.md), texts of public threads (``tests/verdicts/cases``), and faults reproduced on MindSpore's CPU
backend (2.9.0). A code of CANN counts as CANN prints it, ``EI0002:``, ``(EI0002)``, ``EE9999[PID``, and a runtime's
number only after the word that announces it: both also occur in what people write.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from launcher.jobs.verdict import EN, ZH
from launcher.upstream.versions import pip_install

NOT_BUILT = "cluster not built"


@dataclass(frozen=True, kw_only=True)
class KnownError:
    """One known error. ``machine``: a fault of the machine or of communication, after which a restart may succeed.

    ``elsewhere``: the rank that reports it is usually a victim; another one died, lags or never came. ``check``: what
    to run to make sure, "" where the fix says it all. ``vague``: what shows it only where no pattern of any rule
    matches, because the details come after such a line. ``raised``: exceptions about data that show it all the same.
    """

    name: str
    pattern: re.Pattern[str]
    vague: re.Pattern[str]
    cause: dict[str, str]
    fix: dict[str, str]
    check: str = ""
    machine: bool = False
    elsewhere: bool = False
    raised: tuple[str, ...] = ()


_NEVER = r"(?!)"


def codes(*names: str) -> str:
    """Return the pattern for codes of CANN, each a regular expression of its own."""
    return rf"\b(?:{'|'.join(names)})(?=:|\)|\]|\[PID|  )"


def numbers(*values: str) -> str:
    """Return the pattern for error numbers of the runtime: "error code is 507015", "ret[107001]"."""
    announced = r"(?:error code(?: is)?|runtime result|ret(?:code)?|err(?:or)?_?code|errno|failed|failure)"
    return rf"(?i:\b{announced}\W{{0,4}}(?:{'|'.join(values)})\b)"


def _known(
    name: str, pattern: str, cause: str, fix: str, cause_zh: str, fix_zh: str, *, check: str = "",
    machine: bool = False, elsewhere: bool = False, vague: str = _NEVER, raised: tuple[str, ...] = (),
) -> KnownError:  # fmt: skip
    return KnownError(
        name=name,
        pattern=re.compile(pattern),
        vague=re.compile(vague),
        cause={EN: cause, ZH: cause_zh},
        fix={EN: fix, ZH: fix_zh},
        check=check,
        machine=machine,
        elsewhere=elsewhere,
        raised=raised,
    )


# Libraries of CANN, its drivers and what is built on them.
_ASCEND_LIBRARY = (
    r"\b(?:lib)?(?:\w*(?:ascend|hccl|hccp|cann|atb|dcmi|opp|tbe)\w*|ge_\w+|graph\w*|acl_\w+|c_sec|runtime"
    r"|error_manager)"
)

# In order: where one line matches several rules, the first counts.
KNOWN_ERRORS: tuple[KnownError, ...] = (
    # ------------------------------------------------------------------------------------------ the card
    _known(
        "occupied", rf"occupying this card|{codes('EL0005')}|(?i:\bdevice is (?:busy|occupied)\b)",
        "another process has the card", "stop that process and wait 10 s, then: launcher resume JOB",
        "该卡被其他进程占用", "结束该进程并等待 10 秒，然后 launcher resume JOB",
        check="npu-smi info", machine=True,
    ),
    _known(
        "out of device memory",
        rf"{codes('EL0004', 'EI0007', 'EI0011')}|{numbers('207001', '207018')}|halMemAlloc failed|\bNPU out of memory\b"
        r"|\bOutOfMemoryError\b|driver error:out of memory|Out of memory\. Memory malloc failed|[Mm]emory isn't enough"
        r"|Memory not enough|device memory not enough|is more than total mem size|Malloc device memory failed"
        r"|Allocate (?:continuous )?memory failed",
        "the card has not enough memory",
        "halve data.batch_size, or use more cards: launcher plan shows what is needed",
        "设备内存不足", "将 data.batch_size 减半，或增加卡数：launcher plan 可查看所需内存",
        check="launcher plan", raised=("MemoryError",),
    ),
    _known(
        "ECC",
        rf"(?i:multi.?bit.?ecc|\bUCE ?error\b|suspect (?:device )?mem(?:ory)? error|80e01801)|"
        rf"{numbers('507053', '507054', '507055')}",
        "the card's memory (HBM) has an error that it cannot correct",
        "launcher resume JOB without that card; have it reset (npu-smi set -t reset), and replaced if it comes back",
        "该卡片上内存（HBM）发生不可纠正错误",
        "复位该卡（npu-smi set -t reset），反复出现则更换；不使用该卡执行 launcher resume JOB",
        check="npu-smi info -t ecc -i N", machine=True,
    ),
    _known(
        "device lost",
        rf"{codes('EL0001', 'E39009')}|{numbers('507010')}|(?i:\blost heartbeat\b|\bdevice lost\b|heartbeat lost$)",
        "the host lost the card: it does not answer any more",
        "restart the host or reset the card; if it comes back, leave that card out and have it replaced",
        "主机与该卡失联：设备无响应", "重启主机或复位该卡；反复出现则不使用该卡并更换",
        check="npu-smi info", machine=True,
    ),
    _known(
        "suspect remote", rf"{numbers('507057')}|SUSPECT REMOTE ERROR",
        "an operator failed because of a peer (507057)", "look at the other ranks",
        "疑似对端故障（507057）", "查看其他 rank",
        check="launcher logs JOB --errors", machine=True, elsewhere=True,
    ),
    # ------------------------------------------------------------------------------------------ communication
    _known(
        "EJ0001", rf"{codes('EJ0001', 'E30003')}|Failed to initialize the HCCP process",
        "HCCP did not start: as a rule the last training still holds the card",
        "end the old job, wait 10 s, then: launcher resume JOB",
        "HCCP 初始化失败：通常是上一次训练进程尚未退出", "结束旧任务，等待 10 秒后 launcher resume JOB",
        check="launcher jobs", machine=True,
    ),
    _known(
        "EI0016", rf"{codes('EI0016')}|for config \"tls\" is invalid",
        "TLS is on for some cards and off for others", "switch it on or off for all: hccn_tool -i N -tls -s enable 1",
        "各卡 TLS 开关不一致", "统一各卡开关：hccn_tool -i N -tls -s enable 1",
        check="hccn_tool -i N -tls -g",
    ),
    _known(
        "EI0001",
        rf"{codes('EI0001')}|for environment variable HCCL_\w+ is invalid|by HCCL_SOCKET_IFNAME, but not found"
        r"|device ip family\[\d+\] is not same",
        "an HCCL_* variable has a bad value, or address families are mixed",
        "correct the variable that is named, in env of the run spec or in the shell",
        "HCCL_* 环境变量取值错误，或混用了 IPv4 与 IPv6", "在 run spec 的 env 或 shell 中修正所列变量",
        check="env | grep HCCL_",
    ),
    _known(
        "EI0002",
        rf"{codes('EI0002')}|Notify register times out|Notify wait execute failed|stuck notify|fftsplus task timeout"
        r"|Watchdog caught collective operation timeout|\[TaskExecStage\]\[Timeout\]|taskType\[Notify Wait\]"
        r"|ExceptionType:\[(?:Heartbeat Lost|Stuck) Occurred\]|deviceId\[\d+\], Heartbeat Lost Occurred",
        "a collective waited longer than HCCL_EXEC_TIMEOUT: another rank died or lags",
        "look at the ranks named as behind; raise HCCL_EXEC_TIMEOUT where one is only slow",
        "集合通信等待超过 HCCL_EXEC_TIMEOUT：另一 rank 已退出或滞后",
        "查看滞后的 rank；若仅是较慢，可增大 HCCL_EXEC_TIMEOUT",
        check="launcher logs JOB --errors", machine=True, elsewhere=True,
    ),
    _known(
        "EI0005",
        rf"{codes('EI0003', 'EI0005')}|arguments for collective communication are inconsistent"
        r"|CMD information \w+ check fail",
        "ranks called a collective with different arguments",
        "use the same data, spec and versions on all ranks; data.drop_remainder must be true",
        "各 rank 的集合通信参数不一致", "各 rank 使用相同的数据、配置与版本；data.drop_remainder 须为 true",
        check="launcher plan",
    ),
    _known(
        "EI0004",
        rf"{codes('EI0004', 'EI0014', 'EI0017', 'EJ0004')}|ranktable is invalid|in the ranktable is inconsistent"
        r"|\[RanktableConfig\]|\[RanktableCheck\].*(?:invalid|same superDeviceId)|Init plugin so failed",
        "the rank table does not fit this host", "make it anew: launcher rank-table make",
        "rank table 与本机不符", "重新生成：launcher rank-table make",
        check="launcher rank-table check TABLE --against-host",
    ),
    _known(
        "EI0006",
        rf"{codes('EI0006', 'EI0015')}|wait socket establish timeout|Getting socket times out|LINK_ERROR_INFO"
        r"|topo exchange (?:server|agent) get socket timeout|connected p2p timeout|Wait timeout for get P2P status",
        "a rank did not answer within HCCL_CONNECT_TIMEOUT: it never came, its link is down, or TLS differs",
        "bring the link up or make TLS equal, then: launcher resume JOB; raise HCCL_CONNECT_TIMEOUT for slow starts",
        "建链超时（HCCL_CONNECT_TIMEOUT）：对端未启动、链路断开或 TLS 配置不一致",
        "恢复链路或统一 TLS 后 launcher resume JOB；启动较慢时增大 HCCL_CONNECT_TIMEOUT",
        check="launcher doctor", machine=True, elsewhere=True,
    ),
    _known(
        "EI0009", codes("EI0009"),
        "the transport between two cards could not be set up: optical module, address or LLDP",
        "correct the link or address that doctor names", "两卡间传输初始化失败：光模块、IP 或 LLDP 异常",
        "修复 doctor 所指出的链路或地址",
        check="launcher doctor", machine=True,
    ),
    _known(
        "EI0008", codes("EI0008"), "HCCL versions differ between hosts", "install the same CANN on all hosts",
        "各节点 HCCL 版本不一致", "各节点安装同一版本的 CANN", check="launcher doctor",
    ),
    _known(
        "EI0010", codes("EI0010"), "peer-to-peer access between cards failed",
        "export HCCL_INTRA_ROCE_ENABLE=1, then launcher resume JOB",
        "卡间 P2P 访问失败", "export HCCL_INTRA_ROCE_ENABLE=1，然后 launcher resume JOB",
    ),
    _known(
        "EI0012",
        rf"{codes('EI0012', 'EI0013')}|(?i:\berror cqe\b|\bcqe err(?:or)?\b|\bSDMA error\b|SDMA memory copy)",
        "a transfer between cards failed in hardware (SDMA or RoCE completion error)",
        "have the link or the card named by doctor repaired; then launcher resume JOB",
        "卡间传输硬件错误（SDMA/RoCE CQE）", "修复 doctor 所指出的链路或卡；然后 launcher resume JOB",
        check="launcher doctor", machine=True,
    ),
    _known(
        "EI0019",
        rf"{codes('EI0019', 'EI0020', 'EJ0003')}|Failed to bind the IP port|(?:have|has) (?:already )?been bound"
        # Type 1 is the card's own network port: it cannot listen while its link is down.
        r"|socket type\[[02]\], listen on .* fail",
        "a port of the host or the card is taken",
        "set HCCL_IF_BASE_PORT or HCCL_NPU_SOCKET_PORT_RANGE in env",
        "主机或 NPU 端口被占用", "在 env 中设置 HCCL_IF_BASE_PORT 或 HCCL_NPU_SOCKET_PORT_RANGE",
        check="ss -lntp | grep -E ':(60[0-9]{3}|16666)'",
    ),
    _known(
        "EJ0002", rf"{codes('EJ0002')}|network port is down|\brdma init fail",
        "the network port of a card is down",
        "bring the link up (cable, optical module, switch), then: launcher resume JOB",
        "NPU 网口未 up", "恢复链路（线缆、光模块、交换机），然后 launcher resume JOB",
        check="hccn_tool -i N -link -g", machine=True,
    ),
    _known(
        "link error", rf"(?:HCCS|UB) LINK ERROR|{numbers('507056')}|(?i:\blink ?down\b)",
        "a link between cards went down",
        "launcher resume JOB; have the cable, module or switch port replaced if it comes back",
        "卡间链路中断", "launcher resume JOB；反复出现则更换线缆、光模块或交换机端口",
        check="launcher doctor", machine=True,
    ),
    # ------------------------------------------------------------------------------------------ the installation
    _known(
        "CANN not loaded",
        rf"Unsupported device target Ascend|Load dynamic library: libmindspore_ascend\S* failed"
        rf"|{_ASCEND_LIBRARY}\.so[\d.]*: "
        r"cannot open shared object file",
        "CANN's libraries are not found: its environment is not set, or it is not installed",
        "source /usr/local/Ascend/ascend-toolkit/set_env.sh, in the shell that submits or in ~/.bashrc on every host",
        "找不到 CANN 动态库：未设置环境变量或未安装", "source /usr/local/Ascend/ascend-toolkit/set_env.sh（每台主机）",
        check="launcher doctor",
    ),
    _known(
        "versions differ",
        r"undefined symbol: |CANN version mismatch|does not match the current device soc|soc version error"
        r"|json\.exception\.parse_error\.101",
        "MindSpore, CANN, its kernels and the driver do not belong together",
        "install versions that belong together: the table of the MindSpore release names them",
        "MindSpore、CANN、算子包与驱动版本不配套", "按 MindSpore 发行说明安装配套版本",
        check="launcher doctor",
    ),
    _known(
        "opp kernels missing",
        rf"{codes('E30006')}|opp_kernels?\b.* (?:is not instal|is instal)|binary_info_config\.json failed"
        r"|verify the OPP"
        r"|Parse dynamic kernel config fail|op info json (?:suffix path )?failed|Cannot find bin(?:ary)? (?:of|for) op"
        rf"|does not has any binary|{numbers('561003', '56110[789]', '56111[0-3]')}",
        "CANN's compiled kernels for this card are not installed, or are of another version",
        "install Ascend-cann-kernels (opp_kernels) of the same version and for this card",
        "未安装该卡的 CANN 算子包（opp_kernels），或版本不配套",
        "安装与 CANN 同版本、与芯片型号对应的 Ascend-cann-kernels",
        check="ls $ASCEND_OPP_PATH/built-in/op_impl/ai_core/tbe/kernel",
    ),
    _known(
        "EE1001",
        rf"EE1001: .*(?i:invalid device|device range)|{codes('EL0002')}|{numbers('107001')}",
        "a card was asked for that this process cannot see",
        "correct ASCEND_RT_VISIBLE_DEVICES or --cards; hosts need different names",
        "请求的设备不在可见范围内", "修正 ASCEND_RT_VISIBLE_DEVICES 或 --cards；各主机名须不同",
        check="launcher devices",
    ),
    _known(
        "EE1015", codes("EE1015", "EE2002"),
        "the driver is older than this CANN needs, or a runtime variable is bad",
        "upgrade the driver, or correct the variable that is named", "驱动版本过旧，或运行时环境变量错误",
        "升级驱动，或修正所列变量", check="launcher doctor",
    ),
    _known(
        "EL0007", rf"{codes('EL0007', 'EL0015')}|\bret is -8005\b",
        "no permission to use the card, or its driver is not there",
        "add this user to group HwHiAiUser; in a container, map /dev/davinciN, davinci_manager, devmm_svm and hisi_hdc",
        "没有访问该卡的权限，或驱动未加载",
        "将用户加入 HwHiAiUser 组；容器内须映射 /dev/davinciN、davinci_manager、devmm_svm 与 hisi_hdc",
        check="ls -l /dev/davinci*; id",
    ),
    _known(
        "EK0001", rf"{codes('EK0001')}|for \[[\w.]+\] is invalid",
        "a path has characters that CANN does not take, or may not be written",
        "use a path of letters, digits, '.', '-' and '_' that this user may write",
        "路径中含有 CANN 不支持的字符，或无写权限", "路径只使用字母、数字、'.'、'-' 与 '_'，且当前用户可写",
    ),
    _known(
        "operator not supported",
        rf"'errCode': 'E[5-9AB]\w+'|{codes('EZ300[0-9]', 'E[5-8][0-9]{4}', 'E[9AB][0-9]{4}')}|TBEException"
        rf"|Single op compile failed|\[EB\d{{4}}\]|No supported Ops kernel|RuntimeError: Response is empty"
        rf"|(?i:\b(?:do )?tiling failed\b)|this platform only supports?\b|support for Ascend\w+ is not implemented"
        rf"|{numbers('161001', '161002', '56100[12]')}",
        "CANN could not compile or prepare an operator: this card does not support its shapes, types or attributes",
        "compare the named operator's input with CANN's limits; launcher logs JOB shows its place in the model",
        "CANN 无法编译或准备算子：该卡不支持其形状、数据类型或属性",
        "对照 CANN 算子规格检查所列算子的输入；launcher logs JOB 可查看其在模型中的位置",
        check="launcher logs JOB --errors",
    ),
    _known(
        "module missing", r"\bModuleNotFoundError\b|PackageNotFoundError",
        "a Python package is missing in the environment that ranks use", pip_install(),
        "运行环境缺少 Python 包", pip_install(), check="launcher doctor",
    ),
    _known(
        "no kernel", r"Unsupported op \[",
        "this backend has no kernel for an operator", "on CPU use data-parallel float32 only",
        "当前后端没有该算子的实现", "CPU 上仅支持数据并行与 float32",
        check="launcher doctor", raised=("TypeError", "ValueError", "NotImplementedError"),
    ),
    # ------------------------------------------------------------------------------------------ data
    _known(
        "shared memory",
        r"(?i:insufficient shared memory|unexpected bus error|killed by signal: bus error)"
        r"|(?i:\b(?:shm|shared memory)\b.*(?:no space left|cannot allocate|not enough))",
        "shared memory (/dev/shm) is full: worker processes for data pass rows through it",
        "in a container start it with --shm-size=64g or --ipc=host; else lower data.num_workers",
        "共享内存（/dev/shm）不足：数据处理子进程经由它传递数据",
        "容器启动时加 --shm-size=64g 或 --ipc=host；否则减小 data.num_workers",
        check="df -h /dev/shm",
    ),
    _known(
        "dataset worker died",
        r"DataLoader worker.*(?:is|was) killed by signal|DataLoader (?:worker"
        r"|\d+ workers)\b.*\bexit(?:ed)? unexpectedly"
        r"|Dataset worker process.*(?:exited unexpectedly|was killed)",
        "a worker process for data died: as a rule killed for lack of main memory",
        "lower data.num_workers; look above in the log for the worker's own error",
        "数据处理子进程退出：通常因主机内存不足被杀", "减小 data.num_workers；在日志上文查看子进程自身的错误",
        check="dmesg -T | grep -i 'killed process'",
    ),
    _known(
        "data ran out",
        r"'GetNext', get data timeout|kernel_name=GetNext\b|(?i:getnext timeout)|TDT Push data into device Failed",
        "the card waited for data in vain: preparing it takes too long, or there are fewer rows than steps",
        "make data ready beforehand: launcher data preprocess; or set runtime.sink_mode: false",
        "等待数据超时：数据处理过慢，或数据少于所需 step",
        "设置 runtime.sink_mode: false；或预先处理数据：launcher data preprocess",
        check="launcher data stats",
    ),
    _known(
        "loss is not a number", r"(?i)loss is (?:nan|inf|not a number)|\bnan loss\b",
        "the loss became NaN or infinite",
        "lower training.lr_schedule.learning_rate, or set training.max_grad_norm: 1.0; then launcher submit again",
        "loss 变为 NaN 或 Inf",
        "降低 training.lr_schedule.learning_rate，或设置 training.max_grad_norm: 1.0，然后重新提交",
        raised=("ArithmeticError", "FloatingPointError", "ValueError"),
    ),
    # ------------------------------------------------------------------------------------------ the host
    _known(
        "disk quota", r"\[Errno 122\]|(?i:\bdisk quota exceeded\b)",
        "this user's quota of the file system is used up",
        "delete old checkpoints or ask for more, then launcher resume JOB",
        "用户磁盘配额已用完", "删除旧 checkpoint 或申请扩容，然后 launcher resume JOB", check="quota -s",
    ),
    _known(
        "disk full",
        rf"\[Errno 28\]|[:;] ?No space left on device|^No space left on device|{codes('EK0204')}"
        r"|Insufficient disk space",
        "the disk is full", "free some space, then launcher resume JOB",
        "磁盘已满", "清理空间，然后 launcher resume JOB", check="df -h; df -i",
    ),
    _known(
        "stale file handle", r"\[Errno 116\]|Stale NFS file handle|: Stale file handle",
        "the file server lost a file that was open: it was replaced, or the export was mounted anew",
        "mount the file system anew on that host, then launcher resume JOB",
        "文件服务器上的文件句柄已失效：文件被替换或重新挂载", "在该主机重新挂载文件系统，然后 launcher resume JOB",
        check="stat JOBS_FOLDER", machine=True,
    ),
    _known(
        "file system failed", r"\[Errno (?:5|30)\]|[:;] ?Input/output error|[:;] ?Read-only file system",
        "a file system cannot be read or written: its disk or server fails, or it was mounted read-only",
        "look for its errors in the kernel's log; have it repaired, or move the jobs folder and the data elsewhere",
        "文件系统无法读写：磁盘或文件服务器故障，或以只读方式挂载",
        "在内核日志中查看其错误；修复，或将任务目录与数据移至别处",
        check="dmesg -T | tail -50; mount", machine=True,
    ),
    _known(
        "too many files", r"\[Errno 24\]|[:;] ?Too many open files",
        "the limit of open files is reached",
        "raise it for this user (ulimit -n 65535, limits.conf), then launcher resume JOB",
        "打开文件数达到上限", "为该用户提高上限（ulimit -n 65535，limits.conf），然后 launcher resume JOB",
        check="ulimit -n",
    ),
    _known(
        "too many processes",
        rf"can't start new thread|pthread_create failed|Thread creation failed|\[Errno 11\]|{codes('EK0203')}"
        r"|Failed to create host thread|[Ff]ork: Resource temporarily unavailable",
        "the limit of processes and threads of this user or container is reached",
        "raise it (ulimit -u, pids-limit of the container), or lower data.num_workers",
        "用户或容器的进程（线程）数达到上限", "提高上限（ulimit -u、容器 pids-limit），或减小 data.num_workers",
        check="ulimit -u; cat /sys/fs/cgroup/pids.max",
    ),
    _known(
        "host memory",
        rf"\bstd::bad_alloc\b|\bMemoryError\b|\[Errno 12\]|{codes('EE1013', 'EH0010', 'EK0201', 'EK0202')}"
        r"|: Cannot allocate memory|bytes of host memory|[Ff]ail(?:ed)? to alloc\w* memory .*error code is 12\b",
        "this host has not enough main memory", "use fewer ranks or workers a host, or a host with more memory",
        "主机内存不足", "减少每台主机的 rank 或数据子进程，或更换内存更大的主机", check="free -h",
    ),
    _known(
        "host name", r"DNS resolution failed|gaierror|\[Errno -[23]\]|Temporary failure in name resolution",
        "a host's name is not known to another host",
        "add it to /etc/hosts on all hosts, or use addresses in the inventory",
        "主机名无法解析", "在各主机 /etc/hosts 中添加该主机名，或在 inventory 中使用 IP", check="getent hosts NAME",
    ),
    _known(
        "scheduler port",
        r"(?i:address already in use)|(?i:failed to bind\b)|Failed to (?:listen|create the tcp server"
        r"|init\w* the tcp server)",
        "the scheduler could not listen on its port", "leave --port out to have a free one picked",
        "调度进程无法监听端口", "不指定 --port，由程序自动选取空闲端口",
        check="ss -lntp", machine=True,
    ),
    # ------------------------------------------------------------------------------------------ operators that failed
    _known(
        "stream timeout",
        rf"{codes('EE1002', 'E30008')}|(?i:stream synchronize timeout|stream sync timeout|aicore timeout"
        r"|ai ?core execution times out|vector core (?:execution )?time(?:s )?out|operator execution time out)",
        "an operator did not finish within the runtime's time limit: it hangs, or waits for a rank that lags",
        "look at the ranks named as behind; if none is, have the card of this rank checked",
        "算子未在时限内完成：卡死，或在等待滞后的 rank", "查看滞后的 rank；若无，则检查该 rank 的卡",
        check="launcher logs JOB --errors", machine=True, elsewhere=True,
        vague=numbers("507014", "507017", "507034", "507046", "507047", "507048"),
    ),
    _known(
        "aicore error",
        r"Aicore kernel execute failed|(?i:\b(?:ai ?core|vector core) (?:exception|execution is abnormal))"
        r"|\bai(?:core|c|v|vec|vector) error\b|MTE instruction is out of range",
        "an operator failed on the card: it read or wrote out of bounds, met bad data, or the card is faulty",
        "look for the operator's name in the lines; if another card does it too, it is the operator or the data",
        "算子在设备上执行异常：越界访问、输入数据异常，或硬件故障",
        "在日志中查看算子名；若其他卡也出现，则为算子或数据问题",
        check="launcher logs JOB --errors", machine=True, vague=numbers("507015", "507016", "507035", "507036"),
    ),
    _known(
        "aicpu error",
        r"(?i:\baicpu exception|aicpu execution is abnormal|exception occurred during AICPU"
        r"|aicpu kernel execute failed)",
        "an operator that runs on the card's CPU failed: as a rule CANN does not belong to this MindSpore",
        "install the CANN that the MindSpore release names", "AICPU 算子执行失败：通常 CANN 与 MindSpore 版本不配套",
        "安装与 MindSpore 配套的 CANN", check="launcher doctor", vague=rf"{codes('E39999')}|{numbers('507018')}",
    ),
    # ------------------------------------------------------------------------------------------ little is said
    _known(
        "HCCL failed", _NEVER,
        "HCCL could not set up or carry out a collective, and does not say why",
        "look for the first error in plog, of all ranks",
        "HCCL 建立通信域或执行集合通信失败，未给出原因", "在各 rank 的 plog 中查看最早的错误",
        check="launcher doctor; ls ~/ascend/log/debug/plog", machine=True, elsewhere=True,
        vague=r"\bHCCL function error\b|call hccl api failed|\bHccl\w+ fail(?:ed)?\b|hcclComm\w* (?:init )?error"
        r"|Ascend collective (?:Error|communication initialization failed)",
    ),
    _known(
        "EE9999", _NEVER,
        "an inner error of the runtime; the text after it and plog say more",
        "look for the first error in plog, of all ranks",
        "CANN 运行时内部错误，详见其后的文本与 plog", "在各 rank 的 plog 中查看最早的错误",
        check="launcher logs JOB --errors; ls ~/ascend/log/debug/plog", machine=True,
        # Any other code of CANN too.
        vague=rf"{codes('E[A-Z][0-9]{4}', 'E[1-9][0-9]{4}')}"
        rf"|{numbers('[1235]07[0-9]{3}', '500[0-9]{3}', '[135]61[0-9]{3}')}|^Run task error!",
    ),
    _known(
        NOT_BUILT, _NEVER,
        "not all ranks found each other in time", "look for the rank that says least",
        "各 rank 未能在规定时间内完成组网", "查看输出最少的 rank",
        check="launcher logs JOB", machine=True, elsewhere=True,
        vague=r"(?i:failed to initialize (?:collective|distributed))|Topology build timed out"
        r"|Failed to fetch the unique id"
        r"|Failed to (?:wait|initialize) .*cluster|Failed to fetch the address of the rank|Time out nodes are"
        r"|(?:Failed to|not) successfully spawned",
    ),
    _known(
        "peer gone", _NEVER,
        "communication with another rank broke off", "look at the other ranks",
        "与其他 rank 的通信中断", "查看其他 rank",
        check="launcher logs JOB --errors", machine=True, elsewhere=True,
        vague=r"wait receiving .* fail|(?i:(?:error|fail(?:ed)?|critical|exception)\b.*connection (?:reset|refused)"
        r"|AllReduce.*fail)"
        r"|^Connection (?:reset|refused)|Failed to connect to the meta server|client socket has timed out",
    ),
)  # fmt: skip
