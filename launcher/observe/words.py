"""The words of reports in English and Chinese."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from launcher.jobs.verdict import ZH

Say = Callable[..., str]

_ZH = {
    # outcome
    "planned": "等待中",
    "starting": "启动中",
    "running": "运行中",
    "stopping": "停止中",
    "succeeded": "成功",
    "failed": "失败",
    "cancelled": "已取消",
    "lost": "已失联",
    "unreadable": "无法读取",
    "All {total} steps are done.": "{total} 步已全部完成。",
    "Ended after {done} of {total} steps.": "在第 {done} 步结束，计划共 {total} 步。",
    "{done} of {total} steps are done, {left} left.": "已完成 {done}/{total} 步，预计还需 {left}。",
    "{done} steps are done.": "已完成 {done} 步。",
    "No step is finished yet.": "尚未完成任何一步。",
    "No step was finished.": "没有完成任何一步。",
    "The process that watched this job is gone; the job did not end in order.":
        "监控该作业的进程已消失，作业没有正常结束。",
    "{count} steps have a loss that is no finite number.": "有 {count} 步的损失不是有限数值。",
    "Gradients overflowed in {count} steps, which were left out.": "有 {count} 步梯度溢出，未参与更新。",
    "{count} lines of events cannot be read.": "有 {count} 行事件无法读取。",
    "Next": "下一步",
    # the board
    "All jobs": "全部作业",
    "Jobs": "作业",
    "jobs": "个作业",
    "of": "/",
    "attempt": "尝试",
    "live": "实时",
    "not connected; trying again": "连接已断开，正在重试",
    "Search": "搜索",
    "id, name, owner": "编号、名称、用户",
    "Compare": "对比",
    "Compare {job}": "对比 {job}",
    "Show report": "查看报告",
    "Clear": "清除",
    "at most {most} jobs": "最多 {most} 个作业",
    "Progress": "进度",
    "Time left": "剩余时间",
    "Cards": "卡数",
    "Owner": "用户",
    "Age": "提交于多久前",
    "No jobs fit.": "没有符合条件的作业。",
    "No jobs yet.": "还没有作业。",
    "This page needs JavaScript; launcher jobs prints the same list.":
        "此页面需要 JavaScript；launcher jobs 可打印同样的列表。",
    "Whole report": "完整报告",
    "Log": "日志",
    "Log of": "日志来源",
    "Lines that contain": "包含文字",
    "Errors only": "仅错误",
    "Keep at the end": "保持在末尾",
    "No lines.": "没有日志行。",
    "The last 500 lines, looked for in the last 4 MiB; launcher logs has all.":
        "在最后 4 MiB 中查找，显示最后 500 行；launcher logs 可查看全部。",
    "Events": "事件",
    "Event": "事件",
    "Details": "详情",
    "No events yet.": "还没有事件。",
    "The newest {most} of this attempt; steps are in the curves.": "本次尝试最新的 {most} 个事件；训练步见曲线。",
    # key figures
    "Loss": "损失",
    "from {first}": "起始 {first}",
    "Best held-out loss": "最佳验证损失",
    "at step {step}": "第 {step} 步",
    "Tokens": "词元数",
    "{count} in the loss": "其中 {count} 计入损失",
    "padding included": "含填充",
    "Throughput": "吞吐量",
    "{seconds} a step": "每步 {seconds}",
    "Running time": "运行时间",
    "{share} in steps": "{share} 用于训练步",
    "Attempts": "运行次数",
    "{count} steps done again": "重做 {count} 步",
    "no step lost": "未丢失任何一步",
    "lost steps are not known yet": "尚不清楚丢失了多少步",
    "Peak memory": "峰值内存",
    "of the fullest rank": "占用最多的 rank",
    "Model FLOPs utilization": "模型算力利用率",
    "{count} FLOPs a step": "每步 {count} FLOPs",
    # curves
    "Curves": "曲线",
    "Held-out loss": "验证损失",
    "Held-out perplexity": "验证困惑度",
    "Learning rate": "学习率",
    "Gradient norm": "梯度范数",
    "Loss scale": "损失缩放",
    "Overflow": "溢出",
    "Step time": "单步耗时",
    "Row throughput": "样本吞吐",
    "Rows": "样本数",
    "Attempts and their phases": "历次运行与阶段",
    "Tokens in the loss": "计入损失的词元",
    "Input wait": "等待数据",
    "mean over ranks, as the gradients are": "各 rank 的平均，与梯度一致",
    "mean over held-out tokens": "验证词元的平均",
    "e to the held-out loss": "e 的验证损失次方",
    "before clipping": "裁剪之前",
    "Times and rates leave out the first step of each attempt, which compiles.":
        "耗时与速率不含每次运行的第一步（编译）。",
    "1 where gradients overflowed and the step was left out": "1 表示梯度溢出，该步未更新",
    "of the slowest rank": "最慢的 rank",
    "all ranks, padding included": "全部 rank，含填充",
    "all ranks": "全部 rank",
    "of the cards' peak": "占峰值算力的比例",
    "all ranks, a step": "全部 rank，每步",
    "of the rank that waits longest for its rows": "等待数据最久的 rank",
    "Step": "步",
    "step": "步",
    "tokens": "词元",
    "tokens/s": "词元/秒",
    "rows/s": "样本/秒",
    "Time": "时间",
    "time": "时间",
    "Horizontal axis": "横轴",
    "Smoothing": "平滑",
    "Logarithmic": "对数坐标",
    "Whole range": "显示全部",
    "Drag to zoom, double-click for the whole range; arrow keys move the cursor.":
        "拖动可放大，双击恢复全部；方向键移动游标。",
    "Each point stands for {count} steps: the line is their mean, the band their range.":
        "每个点代表 {count} 步：线为平均值，色带为最低到最高。",
    "The band goes from the lowest to the highest rank.": "色带为各 rank 的最低到最高。",
    "Not shown": "未显示",
    "no step is finished yet": "尚未完成任何一步",
    "no held-out rows were evaluated: evaluation.data or .fraction in the run spec names some":
        "没有验证数据：在配置中设置 evaluation.data 或 evaluation.fraction",
    "no evaluation was due: evaluation.every_steps in the run spec is more than the steps that are done":
        "还没到验证的步数：配置中的 evaluation.every_steps 大于已完成的步数",
    "MindFormers computes it where gradients are clipped: training.max_grad_norm in the run spec":
        "MindFormers 仅在裁剪梯度时计算：在配置中设置 training.max_grad_norm",
    "no peak figure is known of these devices": "没有这种设备的峰值数据",
    "spec.json is of another version": "spec.json 来自其他版本",
    "its ranks do not report it (runtime.sink_mode on, or an earlier version of launcher)":
        "rank 未上报（开启了 runtime.sink_mode，或使用旧版 launcher）",
    "its ranks do not report it": "rank 未上报",
    # ranks
    "Ranks": "Rank 对比",
    "Rank": "Rank",
    "Host": "主机",
    "Device": "设备",
    "Last step": "最后一步",
    "Last loss": "最后损失",
    "Enters steps after the median by": "进入每步晚于中位数",
    "Core wait a step": "每步等待 CPU",
    "A save": "单次保存",
    "Input wait in all": "等待数据合计",
    "State": "状态",
    "Collectives make every rank wait for the slowest, so step times are the same on all; "
    "when a rank enters a step, and what it waited for before, tell them apart.":
        "集合通信使所有 rank 等待最慢者，各 rank 的单步耗时因而相同；能区分它们的是进入每一步的时刻和之前的等待。",
    "The {shown} ranks that enter steps last, of {all}.": "最晚进入每一步的 {shown} 个 rank，共 {all} 个。",
    # stragglers
    "One rank waits for nobody.": "只有一个 rank，无需等待其他 rank。",
    "Each stage of the pipeline has one rank, so none has an equal to be compared with.":
        "每个流水线阶段只有一个 rank，没有可比较的对象。",
    "Its ranks do not tell when they enter a step (an earlier version of launcher).":
        "rank 未上报进入每一步的时刻（使用旧版 launcher）。",
    "Too early to tell who is slow: {steps} of {least} steps are done.": "尚无法判断谁慢：已完成 {steps}/{least} 步。",
    "No rank stands out in the newest {steps} steps.": "最近 {steps} 步中没有明显偏慢的 rank。",
    "rank {rank}": "rank {rank}",
    "host {host} (ranks {ranks})": "主机 {host}（rank {ranks}）",
    "comes last in {share} % of steps, {late} after the median": "在 {share} % 的步中最后到达，比中位数晚 {late}",
    "is late in {share} % of steps, {late} after the median": "在 {share} % 的步中迟到，比中位数晚 {late}",
    "comes last in {share} % of steps only, but by {late}, which costs {lost} % of the time":
        "仅在 {share} % 的步中最后到达，但晚 {late}，耗费 {lost} % 的时间",
    "it waits {own} a step for input, the others {others}": "每步等待数据 {own}，其余为 {others}",
    "its threads wait {own} a step for a core, the others' {others}": "其线程每步等待 CPU {own}，其余为 {others}",
    "it takes {own} to save, the others {others}": "单次保存 {own}，其余为 {others}",
    "neither input, nor saving, nor the wait for a core explains it": "数据、保存和等待 CPU 都不能解释",
    "Look at what reads its rows: the disk or mount of the data on that host, and its data workers.":
        "请检查它的数据读取：该主机上数据所在的磁盘或挂载点，以及数据处理进程。",
    "Look at what else runs on that host: top; ps -eLo psr,pcpu,pid,args --sort=-pcpu | head":
        "请检查该主机上还在运行什么：top; ps -eLo psr,pcpu,pid,args --sort=-pcpu | head",
    "Look at the disk or mount to which that host saves: iostat -x 1; df":
        "请检查该主机保存检查点的磁盘或挂载点：iostat -x 1; df",
    "Host {host}: {share} % of its CPU time goes to other virtual machines (steal).":
        "主机 {host}：{share} % 的 CPU 时间被其他虚拟机占用（steal）。",
    "Host {host}: the CPU limit of its container holds threads up for {seconds} s a second (cgroup cpu.stat).":
        "主机 {host}：容器的 CPU 限额使线程每秒停顿 {seconds} 秒（cgroup cpu.stat）。",
    "Card {card} of host {host}: npu-smi says {health}.": "主机 {host} 的卡 {card}：npu-smi 显示 {health}。",
    "Card {card} of host {host}: {own} °C, the median of the cards is {others} °C.":
        "主机 {host} 的卡 {card}：{own} °C，各卡中位数为 {others} °C。",
    "Card {card} of host {host}: {own} W, the median of the cards is {others} W: it may hold its clock down.":
        "主机 {host} 的卡 {card}：{own} W，各卡中位数为 {others} W，可能已降频。",
    "Card {card} of host {host}: {count} more uncorrectable memory errors in {time}.":
        "主机 {host} 的卡 {card}：{time} 内新增 {count} 个不可纠正的内存错误。",
    "Card {card} of host {host}: {count} more damaged packets on its link in {time}.":
        "主机 {host} 的卡 {card}：链路在 {time} 内新增 {count} 个损坏的数据包。",
    "Look at that host and card: launcher doctor; clocks, temperature and load.":
        "请检查该主机和卡：launcher doctor；时钟频率、温度和负载。",
    # attempts
    "start": "启动",
    "compile": "编译",
    "train": "训练",
    "evaluate": "评估",
    "save": "保存",
    "stop": "停止",
    "Attempt {number}": "第 {number} 次",
    "from step {step}": "从第 {step} 步起",
    "{time} later": "间隔 {time}",
    "stopped": "已停止",
    "compile includes loading the weights and the first step": "“编译”包含加载权重和第一步",
    # checkpoints
    "Checkpoints": "检查点",
    "Ranks that saved": "保存的 rank 数",
    "Total time": "总时长",
    "Where the time went": "时间去向",
    "Part": "阶段",
    "spawn": "拉起进程",
    "import": "导入",
    "rendezvous": "建链",
    "load": "加载",
    "steps": "有效训练",
    "evaluation": "验证",
    "saving": "保存",
    "between": "步间",
    "wasted": "白做的训练",
    "detection": "发现故障",
    "idle": "两次运行之间",
    "now": "最近一个事件之后",
    "Before the first start it waited {time}.": "首次启动之前等待了 {time}。",
    "From {cause} to the next step: {time} on average.": "从故障（{cause}）到下一步训练：平均 {time}。",
    "A checkpoint every {steps} steps wastes least, by sqrt(2 x save x time between failures): "
    "sqrt(2 x {save} x {between}) = {seconds}. {source}":
        "按 sqrt(2 × 保存耗时 × 平均故障间隔) 计算，每 {steps} 步保存一次损失最小："
        "sqrt(2 × {save} × {between}) = {seconds}。{source}",
    "The failures are this job's own.": "故障间隔取自本任务。",
    "The time between failures is that of Llama 3 (50,677 hours of one card), as this job had none.":
        "本任务没有发生故障，故障间隔取 Llama 3 公布的数据（单卡 50,677 小时）。",
    "Saved at": "保存时间",
    "Took": "耗时",
    "the {shown} newest of {all}": "{all} 个中最新的 {shown} 个",
    "Every rank saves; the time is that of the slowest.": "每个 rank 都会保存；耗时取最慢者。",
    # data
    "Data": "数据",
    "Training rows": "训练样本",
    "Held-out rows": "验证样本",
    "File": "文件",
    "Source": "来源",
    "Reading the folder …": "正在读取目录……",
    "Sources": "数据来源",
    "Samples": "样本数",
    "Share of the tokens": "词元占比",
    "Passes": "遍数",
    "Records left out": "未用记录",
    "Share": "占比",
    "Template": "模板",
    "Sequence length": "序列长度",
    "Padding": "填充",
    "Lengths of samples in tokens": "样本长度（词元）",
    "median {median}, 95 % up to {p95}, longest {max}": "中位数 {median}，95 % 不超过 {p95}，最长 {max}",
    "Sample rows": "样本示例",
    "Row {row}": "第 {row} 行",
    "text in the loss is marked": "标出的文字计入损失",
    "{path} is gone or cannot be read": "{path} 不存在或无法读取",
    "No statistics lie beside this file.": "该文件旁没有统计信息。",
    # evaluation
    "Evaluation": "评估",
    "Model": "模型",
    "Perplexity": "困惑度",
    "Right answers": "答对",
    "Question": "问题",
    "Expected": "标准答案",
    "Answers to held-out questions": "对验证问题的回答",
    "Evaluated at": "评估时间",
    # merge
    "Merged model": "合并后的模型",
    "Folder": "目录",
    "From step": "来自步",
    "LoRA pairs folded": "已合并的 LoRA 对",
    "Tensors": "张量",
    "Checked": "校验",
    "every value": "全部数值",
    "{count} samples": "{count} 个抽样值",
    "largest difference {error}, allowed {limit}": "最大误差 {error}，允许 {limit}",
    "not checked": "未校验",
    # setup
    "Setup": "配置",
    "Command": "命令",
    "Copy": "复制",
    "Copied": "已复制",
    "Engine command": "引擎命令",
    "Against the preset {preset}": "与预设 {preset} 的差异",
    "Key": "键",
    "Preset": "预设",
    "This run": "本次运行",
    "no difference": "没有差异",
    "Whole spec": "完整配置",
    "Environment": "环境",
    "Versions": "版本",
    "Origin": "来源",
    "Packages": "软件包",
    "Commit": "提交",
    "User": "用户",
    "Scheduler": "调度器",
    "Engine": "引擎",
    "Created": "创建",
    "Ended": "结束",
    "Warnings": "警告",
    "full-parameter finetuning": "全参数微调",
    "LoRA, rank {r}, alpha {alpha}, on {targets}": "LoRA，秩 {r}，alpha {alpha}，作用于 {targets}",
    "{cards} ranks on {target}": "{cards} 个 rank，{target}",
    "1 rank on {target}": "1 个 rank，{target}",
    "Report of {time}": "报告生成于 {time}",
    "made by launcher {version}": "由 launcher {version} 生成",
    # compare
    "Comparison": "对比",
    "Results": "结果",
    "Differences": "差异",
    "What differs": "不同之处",
    "Spec": "配置",
    "Result": "结果",
    "The same in all: {count} keys.": "其余 {count} 个键相同。",
    "The same in all: 1 key.": "其余 1 个键相同。",
    "Nothing differs.": "没有差异。",
    "{count} jobs": "{count} 个作业",
    "Steps": "步数",
    "Outcome": "结局",
    "Lowest loss": "最低损失",
    "Job": "作业",
    "best": "最佳",
}  # fmt: skip


def words(lang: str) -> Say:
    """Return what says an English text in ``lang``, its {names} filled in."""

    def say(text: str, **values: Any) -> str:
        found = _ZH.get(text, text) if lang == ZH else text
        return found.format(**values) if values else found

    return say


def is_translated(text: str) -> bool:
    """Return True if there is a Chinese text for ``text``."""
    return text in _ZH
