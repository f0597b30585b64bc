// The states that the layer can be in.

package route

import "github.com/imds-guard/imds-guard/pkg/layer"

// Shadowed: every piece is there, but something that is evaluated first may lead packets to the endpoint.
var Shadowed = layer.NewState("shadowed", false)

// States lists every state of the layer.
var States = layer.States(Shadowed)
