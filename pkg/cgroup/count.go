// The part of the programs that counts who asks, and sends events about it.

package cgroup

import (
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// For each asker, at most one event is sent in toldEvery, and the beginnings of at most requestsMost requests in requestsEvery:
// a flood costs the agent next to nothing and hides nobody else. (An SDK asks for a token and everything else it wants within a
// millisecond.)
const (
	toldEvery     = time.Second
	requestsEvery = 16 * time.Millisecond
	requestsMost  = 16
)

// The layout of a value of attempts: see Count.
const (
	valueCount = 0
	valueLast  = 8
	valueTold  = 16 // when the period began in which valueMany events were sent
	valueMany  = 24
	valueBegan = 32
	valueSize  = 40
)

// keySize is the size of a key of attempts: see Asker.
const keySize = 24

// whose writes the caller's ancestors on the two levels just below the cgroup with the id in R8 to the event on the stack. For a
// caller that is not below that cgroup, the second is the caller's own. Pods are on one of these levels (kubernetes,
// pkg/kubelet/cm/pod_container_manager_linux.go), so the asker is identified whatever cgroups a pod makes further down, and even if
// the process exits at once.
//
// ancestor has to leave the id of the ancestor at level R7 in R0, and own that of the caller's cgroup.
func whose(ancestor, own asm.Instructions) (code asm.Instructions) {
	for level := int32(1); level <= deepest; level++ {
		code = append(append(code, asm.Mov.Imm(asm.R7, level)), ancestor...)
		code = append(code, asm.JEq.Reg(asm.R0, asm.R8, "below"))
	}
	code = append(code, asm.Mov.Imm(asm.R1, 0), asm.StoreMem(asm.RFP, event, asm.R1, asm.DWord))
	code = append(append(code, own...), asm.Ja.Label("second"))
	code = append(append(code, asm.Add.Imm(asm.R7, 1).WithSymbol("below")), ancestor...)
	code = append(code, asm.StoreMem(asm.RFP, event, asm.R0, asm.DWord), asm.Add.Imm(asm.R7, 1))
	code = append(code, ancestor...)
	return append(code, asm.StoreMem(asm.RFP, event+8, asm.R0, asm.DWord).WithSymbol("second"))
}

// count counts an attempt under the cgroups on the stack and the verdict in R9. It continues if an event is to be sent, which
// happens at most `most` times in `every`, and jumps to otherwise if not.
func (w wanted) count(most int32, every time.Duration, otherwise string) asm.Instructions {
	lookUp := func() asm.Instructions {
		return asm.Instructions{
			asm.LoadMapPtr(asm.R1, w.attempts.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, event),
			asm.FnMapLookupElem.Call(),
		}
	}
	code := asm.Instructions{
		asm.StoreMem(asm.RFP, event+16, asm.R9, asm.DWord),
	}
	code = append(append(code, lookUp()...), asm.JNE.Imm(asm.R0, 0, "known"), asm.Mov.Imm(asm.R1, 0))
	for at := int16(0); at < valueBegan; at += 8 {
		code = append(code, asm.StoreMem(asm.RFP, fresh+at, asm.R1, asm.DWord))
	}
	code = append(code,
		asm.FnKtimeGetNs.Call(),
		asm.StoreMem(asm.RFP, fresh+valueBegan, asm.R0, asm.DWord),
		asm.LoadMapPtr(asm.R1, w.attempts.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, event),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, fresh),
		asm.Mov.Imm(asm.R4, int32(ebpf.UpdateNoExist)), // another processor may be faster
		asm.FnMapUpdateElem.Call(),
	)
	code = append(append(code, lookUp()...), asm.JEq.Imm(asm.R0, 0, otherwise))
	return append(code,
		asm.Mov.Reg(asm.R8, asm.R0).WithSymbol("known"),
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreXAdd(asm.R8, asm.R1, asm.DWord), // valueCount
		asm.FnKtimeGetNs.Call(),
		asm.StoreMem(asm.R8, valueLast, asm.R0, asm.DWord),
		asm.LoadMem(asm.R1, asm.R8, valueTold, asm.DWord),
		asm.JEq.Imm(asm.R1, 0, "anew"),
		asm.Mov.Reg(asm.R2, asm.R0),
		asm.Sub.Reg(asm.R2, asm.R1),
		asm.JGE.Imm(asm.R2, int32(every), "anew"),
		asm.LoadMem(asm.R1, asm.R8, valueMany, asm.DWord),
		asm.JGE.Imm(asm.R1, most, otherwise),
		asm.Add.Imm(asm.R1, 1),
		asm.Ja.Label("news"),
		asm.StoreMem(asm.R8, valueTold, asm.R0, asm.DWord).WithSymbol("anew"),
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreMem(asm.R8, valueMany, asm.R1, asm.DWord).WithSymbol("news"),
	)
}
