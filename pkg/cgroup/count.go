// The part of the programs that counts who asks, and tells of it.

package cgroup

import (
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// Of each cgroup, news is told at most once in toldEvery, and the beginning of a request once in requestEvery: a flood costs the agent
// next to nothing, and hides nobody else.
const (
	toldEvery    = time.Second
	requestEvery = time.Millisecond
)

// Where a value of attempts has what (see Attempts).
const (
	valueCount = 0
	valueLast  = 8
	valueTold  = 16
	valueSize  = 24
)

// count counts an attempt under the cgroup in R0 and the verdict in R9, and writes both to the event on the stack. It goes on where
// there is news to tell, and jumps where there is none.
func (w wanted) count(every time.Duration, otherwise string) asm.Instructions {
	lookUp := func() asm.Instructions {
		return asm.Instructions{
			asm.LoadMapPtr(asm.R1, w.attempts.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, event),
			asm.FnMapLookupElem.Call(),
		}
	}
	code := asm.Instructions{
		asm.StoreMem(asm.RFP, event, asm.R0, asm.DWord),
		asm.StoreMem(asm.RFP, event+8, asm.R9, asm.DWord),
	}
	code = append(append(code, lookUp()...), asm.JNE.Imm(asm.R0, 0, "known"), asm.Mov.Imm(asm.R1, 0))
	for at := int16(0); at < valueSize; at += 8 {
		code = append(code, asm.StoreMem(asm.RFP, fresh+at, asm.R1, asm.DWord))
	}
	code = append(code,
		asm.LoadMapPtr(asm.R1, w.attempts.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, event),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, fresh),
		asm.Mov.Imm(asm.R4, int32(ebpf.UpdateNoExist)), // another processor may be quicker
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
		asm.JEq.Imm(asm.R1, 0, "news"),
		asm.Mov.Reg(asm.R2, asm.R0),
		asm.Sub.Reg(asm.R2, asm.R1),
		asm.JLT.Imm(asm.R2, int32(every), otherwise),
		asm.StoreMem(asm.R8, valueTold, asm.R0, asm.DWord).WithSymbol("news"),
	)
}
